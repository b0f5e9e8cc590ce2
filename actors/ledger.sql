-- name: schema
do $$ begin if to_regnamespace('atelier') is null then create schema atelier; end if; end $$;
create table if not exists atelier.jobs (
    job_id text primary key,
    kind text,
    state text not null,
    tenant text,
    itinerary jsonb not null default '[]',
    created_at timestamptz not null,
    updated_at timestamptz not null,
    ended_at timestamptz,
    result jsonb,
    fault jsonb
);
alter table atelier.jobs add column if not exists words text;
alter table atelier.jobs add column if not exists ended_by text;
create index if not exists jobs_ended_at on atelier.jobs (ended_at);
create index if not exists jobs_created_at on atelier.jobs (created_at desc);
create index if not exists jobs_state on atelier.jobs (state, created_at desc);
create index if not exists jobs_with_pictures on atelier.jobs (created_at desc) where result ?| array['files', 'images'];
create table if not exists atelier.job_events (
    job_id text not null,
    at timestamptz not null,
    step text not null,
    kind text not null,
    message_id text not null,
    percent integer not null,
    body jsonb not null,
    primary key (job_id, step, kind, message_id, percent)
);
create table if not exists atelier.job_claims (
    job_id text primary key,
    kind text not null,
    sha256 text not null,
    claimed_at timestamptz not null default now()
);
alter table atelier.job_claims add column if not exists tenant text;
create index if not exists job_claims_claimed_at on atelier.job_claims (claimed_at);
create table if not exists atelier.generation_claims (
    backend text not null,
    generation_id bigint not null,
    tenant text not null,
    claimed_at timestamptz not null default now(),
    primary key (backend, generation_id)
);
create or replace function atelier.job_step(job atelier.jobs) returns text language sql stable as $$
    select step from atelier.job_events event where event.job_id = job.job_id and step <> 'job' order by at desc limit 1
$$;
create or replace function atelier.job_prompt(job atelier.jobs) returns text language sql stable as $$
    select left(coalesce(
        body #>> '{result,order,prompt}',
        body #>> '{result,order,stops,0,arguments,prompt}',
        body #>> '{result,order,stops,0,arguments,message}',
        body #>> '{result,order,variables,prompt}'
    ), 200)
    from atelier.job_events event
    where event.job_id = job.job_id and step = 'job' and event.kind = 'accepted' and body ->> 'tenant' is not distinct from job.tenant
    limit 1
$$;

-- name: upsert_event
-- Events of the job and completed steps keep their content; a step's progress and failure are replaced by those of a later run, such as a
-- replay, and its device seconds are added to theirs. An event that is delivered again is not later, and changes nothing.
insert into atelier.job_events as event (job_id, at, step, kind, message_id, percent, body)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (job_id, step, kind, message_id, percent) do update set at = excluded.at, body = case
    when event.body ? 'device_seconds' then excluded.body || jsonb_build_object(
        'device_seconds', (event.body ->> 'device_seconds')::float8 + coalesce((excluded.body ->> 'device_seconds')::float8, 0)
    )
    else excluded.body
end
where event.step <> 'job' and event.kind <> 'completed' and event.at < excluded.at

-- name: upsert_job
-- Returns no row for an event of another tenant: the first event sets the job's tenant, or the claim before it.
-- Events may arrive in any order: a final state is replaced only when the job is completed by a replay after it failed or was cancelled.
-- `ended_by`: kind and message of the event that ended the job.
insert into atelier.jobs as job (job_id, kind, state, tenant, itinerary, created_at, updated_at, ended_at, result, fault, words, ended_by)
select $1, $2, $3, $4, coalesce($5::jsonb, '[]'), $6::timestamptz, $6, case when $10::text is not null then $6 end, $7, $8, $9, $10
where not exists (select from atelier.job_claims claim where claim.job_id = $1 and claim.tenant <> coalesce($4, ''))
on conflict (job_id) do update set
    kind = coalesce(job.kind, excluded.kind),
    words = coalesce(job.words, excluded.words),
    itinerary = case when job.itinerary = '[]' then excluded.itinerary else job.itinerary end,
    created_at = least(job.created_at, excluded.created_at),
    updated_at = greatest(job.updated_at, excluded.updated_at),
    (state, result, fault, ended_at, ended_by) = (
        select winner.state, winner.result, winner.fault, winner.ended_at, winner.ended_by
        from (
            values (job.state, job.result, job.fault, job.ended_at, job.ended_by, 0),
                (excluded.state, excluded.result, excluded.fault, excluded.ended_at, excluded.ended_by, 1)
        ) as winner (state, result, fault, ended_at, ended_by, younger)
        where winner.younger = case excluded.state
            when 'accepted' then 0
            when 'running' then (job.state = 'accepted')::integer
            when 'completed' then (job.state <> 'completed')::integer
            else (job.state in ('accepted', 'running'))::integer
        end
    )
where job.tenant is not distinct from excluded.tenant
returning ended_by

-- name: job
select job_id, kind, state, tenant, itinerary, created_at, updated_at, result, fault, atelier.job_step(job) as step,
    atelier.job_prompt(job) as prompt
from atelier.jobs job
where job_id = $1 and ($2::text is null or tenant = $2)

-- name: events
select body from atelier.job_events where job_id = $1 and step <> 'job' order by at

-- name: jobs
select job_id, kind, state, tenant, itinerary, created_at, updated_at, result, fault, atelier.job_step(job) as step,
    atelier.job_prompt(job) as prompt
from atelier.jobs job
where ($1::text is null or state = $1) and ($2::text is null or tenant = $2) and ($3::timestamptz is null or created_at < $3)
  and ($5::text is null or position(lower($5) in lower(words)) > 0 or position($5 in job_id) > 0)
order by created_at desc
limit $4

-- name: jobs_with_pictures
select job_id, kind, state, tenant, itinerary, created_at, updated_at, result, fault, atelier.job_step(job) as step,
    atelier.job_prompt(job) as prompt
from atelier.jobs job
where result ?| array['files', 'images']
  and ($1::text is null or state = $1) and ($2::text is null or tenant = $2) and ($3::timestamptz is null or created_at < $3)
  and ($5::text is null or position(lower($5) in lower(words)) > 0 or position($5 in job_id) > 0)
order by created_at desc
limit $4

-- name: all_events
select body from atelier.job_events
where job_id = $1 and ($2::text is null or body ->> 'tenant' = $2)
order by at, step <> 'job', percent

-- name: claim_job
-- The update changes nothing; it makes `returning` return the existing row. `xmax` is 0 only in a row just inserted.
with claimed as (
    insert into atelier.job_claims as claim (job_id, kind, sha256, tenant) values ($1, $2, $3, $4)
    on conflict (job_id) do update set sha256 = claim.sha256
    returning job_id, sha256, xmax = 0 as first
)
select claimed.*, exists (select from atelier.job_events e where e.job_id = $1) as accepted from claimed

-- name: claim_generation
-- Returns the owner: the first tenant. Its own use makes the claim young again, so that a generation in use is not purged.
insert into atelier.generation_claims as claim (backend, generation_id, tenant) values ($1, $2, $3)
on conflict (backend, generation_id) do update set
    claimed_at = case when claim.tenant = excluded.tenant then now() else claim.claimed_at end
returning tenant

-- name: claimed_job
-- A job of which no event has arrived yet.
select job_id, kind, 'accepted' as state, tenant, claimed_at as created_at, claimed_at as updated_at from atelier.job_claims
where job_id = $1 and ($2::text is null or tenant = $2)

-- name: purge_jobs
-- One batch of ended jobs, with their events and claims. $1: days, $2: size of the batch.
with old as (
    select job_id from atelier.jobs where ended_at < now() - make_interval(secs => $1 * 86400) order by ended_at limit $2 for update skip locked
), events as (
    delete from atelier.job_events using old where job_events.job_id = old.job_id
), claims as (
    delete from atelier.job_claims using old where job_claims.job_id = old.job_id
), purged as (
    delete from atelier.jobs using old where jobs.job_id = old.job_id returning 1
)
select count(*) from purged

-- name: purge_claims
-- One batch of claims without a job. $1: days, $2: size of the batch.
with old as (
    select job_id from atelier.job_claims claim
    where claimed_at < now() - make_interval(secs => $1 * 86400) and not exists (select from atelier.jobs where jobs.job_id = claim.job_id)
    limit $2 for update skip locked
), purged as (
    delete from atelier.job_claims using old where job_claims.job_id = old.job_id returning 1
)
select count(*) from purged

-- name: purge_generations
-- One batch of reserved generations. $1: days, $2: size of the batch.
with old as (
    select backend, generation_id from atelier.generation_claims where claimed_at < now() - make_interval(secs => $1 * 86400)
    limit $2 for update skip locked
), purged as (
    delete from atelier.generation_claims claim using old
    where (claim.backend, claim.generation_id) = (old.backend, old.generation_id) returning 1
)
select count(*) from purged

-- name: usage
-- Busy seconds of the devices by tenant and step, of the events since $1, of one tenant if $2 names it. A step that failed and completed
-- when it was replayed has both events, and used the device both times; the failed one has the sum of all runs that failed.
select body ->> 'tenant' as tenant, step, count(*) as runs, sum((body ->> 'device_seconds')::float8) as device_seconds
from atelier.job_events
where step <> 'job' and body ? 'device_seconds' and ($1::timestamptz is null or at >= $1) and ($2::text is null or body ->> 'tenant' = $2)
group by 1, 2
order by 1 nulls first, device_seconds desc, step
