-- name: schema
create schema if not exists atelier;
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
create index if not exists jobs_created_at on atelier.jobs (created_at desc);
create index if not exists jobs_state on atelier.jobs (state, created_at desc);
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

-- name: upsert_event
-- An event that is delivered again replaces itself.
insert into atelier.job_events (job_id, at, step, kind, message_id, percent, body)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (job_id, step, kind, message_id, percent) do update set at = excluded.at, body = excluded.body

-- name: upsert_job
-- Events may arrive in any order: a final state is never replaced by a state before the end, only by a later final state.
insert into atelier.jobs as job (job_id, kind, state, tenant, itinerary, created_at, updated_at, ended_at, result, fault, words)
values ($1, $2, $3, $4, coalesce($5::jsonb, '[]'), $6::timestamptz, $6, case when $3::text in ('completed', 'failed', 'cancelled') then $6 end, $7, $8, $9)
on conflict (job_id) do update set
    kind = coalesce(job.kind, excluded.kind),
    words = coalesce(job.words, excluded.words),
    tenant = coalesce(job.tenant, excluded.tenant),
    itinerary = case when job.itinerary = '[]' then excluded.itinerary else job.itinerary end,
    created_at = least(job.created_at, excluded.created_at),
    updated_at = greatest(job.updated_at, excluded.updated_at),
    (state, result, fault) = (
        select winner.state, winner.result, winner.fault
        from (values (job.state, job.result, job.fault, 0), (excluded.state, excluded.result, excluded.fault, 1)) as winner (state, result, fault, younger)
        where winner.younger = case
            when excluded.state in ('completed', 'failed', 'cancelled') then (job.state in ('accepted', 'running') or excluded.updated_at >= job.ended_at)::integer
            else (excluded.state = 'running' and job.state = 'accepted')::integer
        end
    ),
    ended_at = case when excluded.ended_at is null then job.ended_at else greatest(job.ended_at, excluded.ended_at) end

-- name: job
select job_id, kind, state, tenant, itinerary, created_at, updated_at, result, fault from atelier.jobs where job_id = $1

-- name: events
select body from atelier.job_events where job_id = $1 and step <> 'job' order by at

-- name: jobs
select job_id, kind, state, tenant, itinerary, created_at, updated_at, result, fault from atelier.jobs
where ($1::text is null or state = $1) and ($2::text is null or tenant = $2) and ($3::timestamptz is null or created_at < $3)
  and ($5::text is null or position(lower($5) in lower(words)) > 0 or position($5 in job_id) > 0)
order by created_at desc
limit $4

-- name: all_events
select body from atelier.job_events where job_id = $1 order by at, step <> 'job', percent

-- name: claim_job
-- The update changes nothing; it makes `returning` return the existing row. `xmax` is 0 only in a row just inserted.
with claimed as (
    insert into atelier.job_claims as claim (job_id, kind, sha256, tenant) values ($1, $2, $3, $4)
    on conflict (job_id) do update set sha256 = claim.sha256
    returning job_id, sha256, xmax = 0 as first
)
select claimed.*, exists (select from atelier.job_events e where e.job_id = $1) as accepted from claimed

-- name: claimed_job
-- A job of which no event has arrived yet.
select job_id, kind, 'accepted' as state, tenant, claimed_at as created_at, claimed_at as updated_at from atelier.job_claims where job_id = $1
