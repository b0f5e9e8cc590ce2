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
-- Three neighbouring bytes of a text in UTF-8 as one number, from every second byte on, the first of which is `first`. A text contains
-- another one only if it has all numbers of that one, or all of its numbers from its second byte on.
create or replace function atelier.byte_triples(value text, first integer) returns integer[]
language sql immutable parallel safe cost 1000 as $$
    select array(
        select (get_byte(bytes, n) << 16) + (get_byte(bytes, n + 1) << 8) + get_byte(bytes, n + 2)
        from generate_series(first, octet_length(bytes) - 3, 2) n
    )
    from convert_to(value, 'UTF8') bytes
$$;
create or replace function atelier.make_jobs_searchable() returns trigger language plpgsql as $$
begin
    insert into atelier.job_search select job_id, words from added on conflict (job_id) do update set words = excluded.words;
    return null;
end $$;
create or replace function atelier.make_job_searchable() returns trigger language plpgsql as $$
begin
    if tg_op = 'TRUNCATE' then
        delete from atelier.job_search;
    elsif tg_op = 'DELETE' then
        delete from atelier.job_search using removed where job_search.job_id = removed.job_id;
    else
        insert into atelier.job_search values (new.job_id, new.words) on conflict (job_id) do update set words = excluded.words;
    end if;
    return null;
end $$;
do $$
begin -- A table of its own, since each change of a job's state would write all its triples again.
    if to_regclass('atelier.job_search') is null then
        lock table atelier.jobs in share row exclusive mode;
        create table atelier.job_search (job_id text primary key, words text);
        create trigger jobs_added after insert on atelier.jobs for each row execute function atelier.make_job_searchable();
        create trigger jobs_reworded after update of words on atelier.jobs
            for each row when (old.words is distinct from new.words) execute function atelier.make_job_searchable();
        create trigger jobs_removed after delete on atelier.jobs
            referencing old table as removed for each statement execute function atelier.make_job_searchable();
        create trigger jobs_truncated after truncate on atelier.jobs execute function atelier.make_job_searchable();
        create index jobs_tenant on atelier.jobs (tenant, created_at desc);
        if (select count(*) from (select from atelier.jobs limit 10001) as few) <= 10000 then -- more are indexed beside the writers
            insert into atelier.job_search select job_id, words from atelier.jobs;
            create index job_search_triples on atelier.job_search
                using gin ((atelier.byte_triples(lower(coalesce(words, '')) || ' ' || job_id, 0)))
                with (gin_pending_list_limit = 512);
        end if;
    end if;
    if not exists (select from pg_trigger where tgrelid = 'atelier.jobs'::regclass and tgname = 'jobs_added_together') then
        -- The trigger of an earlier release stays, disabled: to drop it would need a stronger lock.
        lock table atelier.jobs in share row exclusive mode;
        create trigger jobs_added_together after insert on atelier.jobs
            referencing new table as added for each statement execute function atelier.make_jobs_searchable();
        alter table atelier.jobs disable trigger jobs_added;
    end if;
end $$;
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

-- name: record_events
-- Arrays with an element for each event, of one event a job at most: the events of one job are written one after another.
-- Returns the events of another tenant, which are not stored: the first event sets the job's tenant, or the claim before it.
-- Events may arrive in any order: a final state is replaced only when the job is completed by a replay after it failed or was cancelled.
-- `ended_by`: kind and message of the event that ended the job; another event that says so is not stored.
-- Events of the job and completed steps keep their content; a step's progress and failure are replaced by those of a later run, such as a
-- replay, and its device seconds are added to theirs. An event that is delivered again is not later, and changes nothing.
with arrived as (
    select *, step = 'job' as of_job, step = 'job' and kind = 'accepted' as accepted
    from unnest(
        $1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::integer[],
        $11::text[]::jsonb[]
    ) as event (job_id, state, tenant, at, words, ended_by, step, kind, message_id, percent, body)
), owner as (
    insert into atelier.jobs as job (job_id, kind, state, tenant, itinerary, created_at, updated_at, ended_at, result, fault, words, ended_by)
    select job_id, case when accepted then body #>> '{result,kind}' end, state, tenant,
        case when accepted and jsonb_typeof(body #> '{result,itinerary}') = 'array' then body #> '{result,itinerary}' else '[]' end,
        at, at, case when ended_by is not null then at end,
        case when of_job and kind = 'completed' then coalesce(body -> 'result', '{}') end,
        case when of_job then body -> 'fault' end, words, ended_by
    from arrived
    where ( -- looked up by the index, also with the plan that was made when the database was new
        select claim.tenant <> coalesce(arrived.tenant, '') from atelier.job_claims claim where claim.job_id = arrived.job_id limit 1
    ) is not true
    order by job_id -- two processes lock the jobs in the same order
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
    returning job_id, ended_by
), stored as (
    insert into atelier.job_events as event (job_id, at, step, kind, message_id, percent, body)
    select job_id, at, step, kind, message_id, percent, body
    from arrived join owner using (job_id)
    where arrived.ended_by is null or arrived.ended_by = owner.ended_by
    on conflict (job_id, step, kind, message_id, percent) do update set at = excluded.at, body = case
        when event.body ? 'device_seconds' then excluded.body || jsonb_build_object(
            'device_seconds', (event.body ->> 'device_seconds')::float8 + coalesce((excluded.body ->> 'device_seconds')::float8, 0)
        )
        else excluded.body
    end
    where event.step <> 'job' and event.kind <> 'completed' and event.at < excluded.at
)
select job_id, step, kind, tenant from arrived where not exists (select from owner where owner.job_id = arrived.job_id)

-- name: job
-- With the events of its steps: one statement reads one snapshot, so that the state of a job fits its steps.
select job_id, kind, state, tenant, itinerary, created_at, updated_at, result, fault, atelier.job_step(job) as step,
    atelier.job_prompt(job) as prompt,
    array(select body from atelier.job_events event where event.job_id = job.job_id and event.step <> 'job' order by at) as events
from atelier.jobs job
where job_id = $1 and ($2::text is null or tenant = $2)

-- name: columns
job_id, kind, state, tenant, itinerary, page.created_at, updated_at, result, fault, atelier.job_step(job) as step,
    atelier.job_prompt(job) as prompt

-- name: jobs
with page as materialized (
    select job_id, created_at from atelier.jobs where {conditions} order by created_at desc limit $1
)
select {columns}
from page join atelier.jobs job using (job_id)
order by page.created_at desc

-- name: jobs_of_newest
-- Each row of a page that is not full has the number of jobs that were read; a row without a job has it when none of them matches.
with candidates as materialized (
    select job_id, words, created_at from atelier.jobs where {conditions} order by created_at desc limit {most}
), page as materialized (
    select job_id, created_at from candidates where {words} order by created_at desc limit $1
)
select {columns}, case when (select count(*) from page) < $1 then (select count(*) from candidates) else 0 end as candidates
from (select) as always left join (page join atelier.jobs job using (job_id)) on true
order by page.created_at desc

-- name: jobs_of_indexed
-- The same of the jobs that have the triples of bytes. None is looked up where they are more than the most that are read.
-- Each is looked up by its id: the limit of one keeps the planner from reading all jobs.
with candidates as materialized (
    select job_id, words from atelier.job_search where {triples} limit {most} + 1
), page as materialized (
    select job_id, created_at
    from candidates cross join lateral (
        select created_at from atelier.jobs where jobs.job_id = candidates.job_id and {conditions} limit 1
    ) as job
    where (select count(*) from candidates) <= {most} and {words}
    order by created_at desc limit $1
)
select {columns}, (select count(*) from candidates) as candidates
from (select) as always left join (page join atelier.jobs job using (job_id)) on true
order by page.created_at desc

-- name: search_is_indexed
select exists (select from pg_index where indexrelid = to_regclass('atelier.job_search_triples') and indisvalid)

-- name: has_former_search_index
select to_regclass('atelier.job_search_pairs') is not null

-- name: drop_former_search_index
-- Of pairs of characters. Processes of that release read all jobs then.
drop index concurrently if exists atelier.job_search_pairs

-- name: lock_search
select pg_try_advisory_lock($1)

-- name: unlock_search
select pg_advisory_unlock($1)

-- name: drop_search_index
drop index concurrently if exists atelier.job_search_triples

-- name: create_search_index
-- Without `if not exists`: repeated after a deadlock, which leaves an index that is not valid, it fails instead of taking that one for it.
create index concurrently job_search_triples on atelier.job_search
    using gin ((atelier.byte_triples(lower(coalesce(words, '')) || ' ' || job_id, 0)))
    with (gin_pending_list_limit = 512)

-- name: fill_search
-- One batch of jobs of an earlier release, in the order of their ids. $1: the last id of the batch before, $2: size of the batch.
-- A deadlock with a group of events or the purge, which lock jobs in another order, is rare: either side runs again.
with batch as (
    select job_id, words from atelier.jobs where job_id > $1 order by job_id limit $2 for key share
), filled as (
    insert into atelier.job_search select job_id, words from batch on conflict (job_id) do nothing
)
select max(job_id) from batch

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
