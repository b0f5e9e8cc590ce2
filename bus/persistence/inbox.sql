-- name: schema
do $$ begin if to_regnamespace('atelier') is null then create schema atelier; end if; end $$;
create table if not exists atelier.inbox (
    step text not null,
    message_id text not null,
    owner integer,
    result jsonb,
    finished_at timestamptz,
    deaths integer not null default 0,
    primary key (step, message_id)
);
do $$
begin -- Checked first: `add column if not exists` takes an exclusive lock at each start.
    if not exists (
        select from information_schema.columns where table_schema = 'atelier' and table_name = 'inbox' and column_name = 'deaths'
    ) then
        alter table atelier.inbox add column deaths integer not null default 0;
    end if;
end $$;
create index if not exists inbox_finished_at on atelier.inbox (finished_at);
create table if not exists atelier.cancelled (
    job_id text primary key,
    at timestamptz not null default now()
);

-- name: acquire
-- One round trip: acquire the message unless it is done or another live process owns it; return what is known of it and of its job.
-- A process is alive while the shared form of its liveness lock cannot be taken: one look-up, where `pg_locks` lists every lock.
-- A message that this process owns is acquired again: it repeats the statement only when the first response was lost.
-- A process whose liveness lock is gone acquires nothing: another would take the message from it at once, and count a crash.
-- $6: the entries of an earlier release, for one release. A live process of that release may still run one.
with former as (
    select result, owner from atelier.inbox where step = $1 and message_id = any($6::text[])
), acquired as (
    insert into atelier.inbox as known (step, message_id, owner)
    select $1::text, $2::text, $3::integer
    where (select not pg_try_advisory_xact_lock_shared($4::integer, $3::integer))
        and not exists (select from former where result is not null or not pg_try_advisory_xact_lock_shared($4::integer, owner))
    on conflict (step, message_id) do update set
        owner = excluded.owner, deaths = known.deaths + coalesce(known.owner <> excluded.owner, false)::integer
    where known.result is null
        and (known.owner is null or known.owner = excluded.owner or pg_try_advisory_xact_lock_shared($4::integer, known.owner))
    returning deaths
), entry as (
    select result from atelier.inbox where step = $1 and message_id = $2
)
select
    exists (select from acquired) as owned,
    coalesce((select deaths from acquired), 0) as deaths,
    coalesce((select result from entry), (select result from former where result is not null limit 1)) as result,
    (select result from entry) is null and exists (select from former where result is not null) as former,
    exists (select from atelier.cancelled where job_id = $5) as cancelled

-- name: group
-- Acquire those messages of a group that have no entry, neither of this release nor of an earlier one, and mark others done; `acquire`
-- and `mark_done` decide on any other. Returns the messages it has written, and of the jobs the cancelled ones, without a step.
-- It waits for no lock of an entry that a transaction holds open, so that no message delays the others of its group; only for another
-- statement that acquires one of them at the same time. The arrays are in the order of their messages in every process: no deadlock.
-- Arrays: step, message, job and two entries of an earlier release, to acquire; $6 to $8: step, message and result, to mark done.
-- They are passed as sub-selects: the planner does not see their lengths, and makes one plan instead of one for each statement. The limit,
-- which is the number of rows, makes it expect few: it looks each up in the index, however small the table was when the plan was made.
with unlocked as (
    select inbox.step, inbox.message_id, ended.result
    from (
        select unnest((select $6::text[])) as step, unnest((select $7::text[])) as message_id, unnest((select $8::text[])) as result
        limit (select cardinality($6::text[]))
    ) as ended join atelier.inbox on inbox.step = ended.step and inbox.message_id = ended.message_id and inbox.owner = $9
    for no key update of inbox skip locked
), done as (
    update atelier.inbox set result = unlocked.result::jsonb, finished_at = now(), owner = null
    from unlocked
    where inbox.step = unlocked.step and inbox.message_id = unlocked.message_id
    returning inbox.step, inbox.message_id
), acquired as (
    insert into atelier.inbox (step, message_id, owner)
    select step, message_id, $9::integer
    from (
        select unnest((select $1::text[])) as step, unnest((select $2::text[])) as message_id,
            unnest((select $4::text[])) as former, unnest((select $5::text[])) as other_former
    ) as asked
    where (select not pg_try_advisory_xact_lock_shared($10::integer, $9::integer)) and (
        select true from atelier.inbox
        where inbox.step = asked.step and inbox.message_id in (asked.message_id, asked.former, asked.other_former) limit 1
    ) is not true
    on conflict do nothing -- which alone would wait for an open transaction that has changed the entry
    returning step, message_id
)
select step, message_id from acquired
union all select step, message_id from done
union all select null, job_id from atelier.cancelled where job_id = any((select $3::text[])::text[])

-- name: mark_done
update atelier.inbox set result = $4::text::jsonb, finished_at = now(), owner = null
where step = $1 and message_id = $2 and owner = $3
returning true

-- name: is_done
-- Whether the message is done with this very result.
select true from atelier.inbox where step = $1 and message_id = $2 and owner is null and result = $3::text::jsonb

-- name: crash_count
-- How many processes crashed while they ran the message, its last owner included.
select deaths + (owner is not null and pg_try_advisory_xact_lock_shared($3::integer, owner))::integer
from atelier.inbox where step = $1 and message_id = $2 and result is null

-- name: hold_liveness_lock
-- Whether this session holds the lock, which it takes unless it has it. An earlier session of this process may hold it a moment longer.
select case when exists (
    select from pg_locks
    where locktype = 'advisory' and granted and objsubid = 2 and pid = pg_backend_pid()
        and classid = $1::integer::oid and objid = $2::integer::oid
) then true else pg_try_advisory_lock($1, $2) end

-- name: is_alive
select true from pg_locks
where locktype = 'advisory' and granted and objsubid = 2 and mode = 'ExclusiveLock'
    and database = (select oid from pg_database where datname = current_database())
    and classid = $1::integer::oid and objid = $2::integer::oid

-- name: release
-- As for `group`: the rows in order, each looked up in the index.
delete from atelier.inbox using (
    select * from unnest((select $1::text[]), (select $2::text[])) as released (step, message_id)
    order by step, message_id limit (select cardinality($1::text[]))
) as released
where inbox.step = released.step and inbox.message_id = released.message_id and inbox.owner = $3 and inbox.result is null

-- name: cancel
insert into atelier.cancelled (job_id) values ($1) on conflict do nothing

-- name: purge
with old_results as (
    delete from atelier.inbox where finished_at < now() - $1 * interval '1 day' returning 1
), old_cancels as (
    delete from atelier.cancelled where at < now() - $1 * interval '1 day' returning 1
)
select (select count(*) from old_results) + (select count(*) from old_cancels)
