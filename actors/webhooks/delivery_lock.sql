-- name: schema
do $$ begin if to_regnamespace('atelier') is null then create schema atelier; end if; end $$;
create table if not exists atelier.webhook_calls (
    target text not null,
    generation_id bigint not null,
    percent integer,
    complete_state text check (complete_state in ('begun', 'answered')),
    complete_message_id text,
    failed_state text check (failed_state in ('begun', 'answered')),
    changed_at timestamptz not null default now(),
    primary key (target, generation_id)
);
alter table atelier.webhook_calls add column if not exists tenant text;
create index if not exists webhook_calls_changed_at on atelier.webhook_calls (changed_at);

-- name: lock
-- Held by the session of the process during one call. The server releases it when the connection is lost.
select pg_try_advisory_lock(hashtextextended($1, 0))

-- name: unlock
select pg_advisory_unlock(hashtextextended($1, 0))

-- name: load_state
-- The tenant is empty for the installation, and null in a row of the previous release.
select percent, complete_state, complete_message_id, failed_state, tenant
from atelier.webhook_calls
where target = $1 and generation_id = $2

-- name: save_state
insert into atelier.webhook_calls (target, generation_id, percent, complete_state, complete_message_id, failed_state, tenant)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (target, generation_id) do update set
    percent = excluded.percent,
    complete_state = excluded.complete_state,
    complete_message_id = excluded.complete_message_id,
    failed_state = excluded.failed_state,
    tenant = excluded.tenant,
    changed_at = now()

-- name: purge
delete from atelier.webhook_calls where changed_at < now() - make_interval(days => $1)
