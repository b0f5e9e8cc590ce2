-- name: schema
do $$ begin if to_regnamespace('atelier') is null then create schema atelier; end if; end $$;
create table if not exists atelier.dead_letter_replays (
    id bigint generated always as identity primary key,
    asked_by text not null,
    asked_at timestamptz not null default now(),
    per_second double precision,
    next_at timestamptz not null default now(),
    done_at timestamptz
);
create index if not exists dead_letter_replays_open on atelier.dead_letter_replays (next_at) where done_at is null;
create table if not exists atelier.dead_letters (
    id text primary key,
    dead_queue text not null,
    target text,
    step text not null,
    message_id text not null,
    sent_as text not null,
    job_id text not null,
    tenant text,
    type text,
    content_type text,
    content_encoding text,
    group_id text not null,
    code text not null,
    message text not null,
    exception_type text,
    stack text not null,
    shape jsonb not null,
    attempts integer not null,
    origin_exchange text,
    origin_key text,
    headers jsonb not null,
    body bytea not null,
    size integer not null,
    state text not null check (state in ('unresolved', 'replay-requested', 'resolved', 'failed-again', 'archived')),
    failures integer not null default 1,
    replays integer not null default 0,
    replay_id bigint references atelier.dead_letter_replays (id),
    forwarded_at timestamptz,
    edited_body bytea,
    edited_type text,
    edited_from text,
    first_failed_at timestamptz not null,
    last_failed_at timestamptz not null,
    changed_at timestamptz not null default now(),
    properties bytea
);
do $$
begin -- Checked first: `add column if not exists` takes an exclusive lock at each start.
    if not exists (
        select from information_schema.columns
        where table_schema = 'atelier' and table_name = 'dead_letters' and column_name = 'properties'
    ) then
        alter table atelier.dead_letters add column properties bytea;
    end if;
end $$;
create index if not exists dead_letters_last_failed_at on atelier.dead_letters (last_failed_at desc, id);
create index if not exists dead_letters_sent_as on atelier.dead_letters (sent_as);
create index if not exists dead_letters_to_send on atelier.dead_letters (replay_id) where state = 'replay-requested' and forwarded_at is null;
create table if not exists atelier.dead_letter_history (
    number bigint generated always as identity primary key,
    letter_id text not null references atelier.dead_letters (id) on delete cascade,
    failure_id text unique,
    at timestamptz not null default now(),
    kind text not null,
    said jsonb not null default '{}'
);
create index if not exists dead_letter_history_letter on atelier.dead_letter_history (letter_id, number);
-- Whether a dead letter matches a selection: every filter that is set must hold.
create or replace function atelier.dead_letter_selected(letter atelier.dead_letters, selection jsonb) returns boolean
language sql stable as $$
    select (selection->'ids' is null or (selection->'ids') ? letter.id)
        and (selection->>'group' is null or letter.group_id = selection->>'group')
        and (selection->>'step' is null or letter.step = selection->>'step')
        and (selection->>'code' is null or letter.code = selection->>'code')
        and (selection->>'exception_type' is null or letter.exception_type = selection->>'exception_type')
        and (selection->>'tenant' is null or letter.tenant = selection->>'tenant')
        and (selection->>'state' is null or letter.state = selection->>'state')
        and (selection->>'job_id' is null or letter.job_id = selection->>'job_id')
        and (selection->>'message_id' is null or selection->>'message_id' in (letter.message_id, letter.sent_as))
        and (selection->>'since' is null or letter.last_failed_at >= (selection->>'since')::timestamptz)
        and (selection->>'before' is null or letter.last_failed_at < (selection->>'before')::timestamptz)
$$;
-- Whether a dead letter may be sent again. One that was sent and not resolved may only when its state is selected explicitly: its message was lost.
create or replace function atelier.dead_letter_replayable(letter atelier.dead_letters, selection jsonb) returns boolean
language sql immutable as $$
    select letter.state in ('unresolved', 'failed-again')
        or (letter.state = 'replay-requested' and letter.forwarded_at is not null and selection->>'state' = 'replay-requested')
$$;

-- name: exists
select to_regclass('atelier.dead_letter_history') is not null and to_regclass('atelier.dead_letter_counts') is not null and exists (
    select from information_schema.columns where table_schema = 'atelier' and table_name = 'dead_letters' and column_name = 'properties'
)

-- name: insert
-- Arrays with an element for each failure, of each message and queue one at most. One failure is stored once, however often its message is
-- delivered. Two messages may be of one dead letter, when it was replayed under a new id: Postgres refuses both in one statement, and each is
-- inserted alone.
-- A replayed message that failed again is the same dead letter.
with arrived as (
    select failure.*, coalesce(known.id, failure.own_id) as letter_id, known.edited_from
    from unnest(
        (select $1::text[]), -- whose length the planner does not see: else it would plan each small group again
        $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
        $13::text[], $14::text[], $15::text[], $16::text[]::jsonb[], $17::integer[], $18::text[], $19::text[],
        $20::timestamptz[], $21::timestamptz[], $22::text[]::jsonb[], $23::bytea[], $24::text[], $25::bytea[]
    ) as failure (
        own_id, failure_id, message_id, dead_queue, target, step, job_id, tenant, type, content_type, content_encoding,
        code, message, exception_type, stack, shape, attempts, origin_exchange, origin_key,
        first_failed_at, last_failed_at, headers, body, group_id, properties
    ) cross join lateral ( -- an aggregate is looked up by the index, also with the plan that was made when the database was new
        select min(id) filter (where edited_body is null) as id, min(id) filter (where edited_body is not null) as edited_from
        from atelier.dead_letters as letter
        where letter.sent_as = failure.message_id and letter.dead_queue = failure.dead_queue
    ) as known
), recorded as (
    insert into atelier.dead_letter_history (letter_id, failure_id, at, kind, said)
    select letter_id, failure_id, last_failed_at, 'failed', jsonb_build_object('code', code, 'message', message, 'attempts', attempts)
    from arrived
    order by letter_id -- two processes write the failures of a statement, and lock its dead letters, in the same order
    on conflict (failure_id) do nothing
    returning failure_id
)
insert into atelier.dead_letters as known (
    id, message_id, sent_as, dead_queue, target, step, job_id, tenant, type, content_type, content_encoding,
    code, message, exception_type, stack, shape, attempts, origin_exchange, origin_key,
    first_failed_at, last_failed_at, headers, body, size, group_id, state, edited_from, properties
)
select
    letter_id, message_id, message_id, dead_queue, target, step, job_id, tenant, type, content_type, content_encoding,
    code, message, exception_type, stack, shape, attempts, origin_exchange, origin_key,
    first_failed_at, last_failed_at, headers, body, octet_length(body), group_id, 'unresolved', edited_from, properties
from arrived join recorded using (failure_id)
order by letter_id
on conflict (id) do update set
    (target, tenant, code, message, exception_type, stack, shape, attempts, last_failed_at, headers, body, size, group_id,
        properties) = (
        coalesce(excluded.target, known.target), coalesce(excluded.tenant, known.tenant), excluded.code, excluded.message,
        excluded.exception_type, excluded.stack, excluded.shape, excluded.attempts, greatest(known.last_failed_at, excluded.last_failed_at),
        excluded.headers, excluded.body, excluded.size, excluded.group_id, excluded.properties
    ),
    first_failed_at = least(known.first_failed_at, excluded.first_failed_at),
    state = 'failed-again',
    failures = known.failures + 1,
    (sent_as, edited_body, edited_type) = (case when known.edited_body is null then known.sent_as else known.message_id end, null, null),
    changed_at = now()

-- name: get
-- With its history: one statement reads one snapshot, so that the state of a dead letter fits its history.
select *, array(
    select jsonb_build_object('at', entry.at, 'kind', entry.kind, 'said', entry.said)
    from atelier.dead_letter_history as entry where letter_id = letter.id order by number
) as history
from atelier.dead_letters letter where id = $1

-- name: get_for_update
select * from atelier.dead_letters where id = $1 for update

-- name: replayable
select id, target is null as without_target, count(*) over (partition by target is null) as letters
from atelier.dead_letters as letter
where atelier.dead_letter_selected(letter, $1) and atelier.dead_letter_replayable(letter, $1)
order by last_failed_at, id

-- name: replay_properties
select id, dead_queue, target, message_id, case when edited_body is null then sent_as else message_id end as sent_as, job_id, tenant, type,
    content_type, content_encoding, headers, properties, replays + 1 as replays, ''::bytea as body, false as edited, null as edited_type
from atelier.dead_letters where id = any($1::text[])

-- name: create_replay
insert into atelier.dead_letter_replays (asked_by, per_second) values ($1, $2) returning id

-- name: stage
-- The row locks and the state let each dead letter enter one replay only, also with concurrent requests.
with chosen as (
    select id from atelier.dead_letters as letter
    where atelier.dead_letter_selected(letter, $1) and atelier.dead_letter_replayable(letter, $1) and target is not null
    order by last_failed_at, id
    for update
), staged as (
    update atelier.dead_letters as letter set
        state = 'replay-requested', replay_id = $2, forwarded_at = null, replays = replays + 1, changed_at = now(),
        sent_as = case when $3 then gen_random_uuid()::text when edited_body is null then sent_as else letter.message_id end,
        edited_body = null, edited_type = null
    from chosen where letter.id = chosen.id
    returning letter.id, letter.sent_as
), recorded as (
    insert into atelier.dead_letter_history (letter_id, kind, said)
    select id, 'replay-requested', jsonb_build_object('replay', $2::bigint, 'by', $4::text, 'as', sent_as) from staged
)
select id from staged

-- name: stage_edited
with staged as (
    update atelier.dead_letters set
        state = 'replay-requested', replay_id = $2, forwarded_at = null, replays = replays + 1, changed_at = now(),
        sent_as = $3, edited_body = $4, edited_type = $5
    where id = $1
    returning id
)
insert into atelier.dead_letter_history (letter_id, kind, said)
select id, 'edited', jsonb_build_object('replay', $2::bigint, 'by', $6::text, 'as', $3::text) from staged

-- name: next_replay
-- The relay that holds the row lock publishes for this replay; other relays skip it.
select id, per_second from atelier.dead_letter_replays
where done_at is null and next_at <= clock_timestamp() and ($1::bigint is null or id = $1)
order by next_at
limit 1
for update skip locked

-- name: next_letters
select id, dead_queue, target, message_id, sent_as, job_id, tenant, type, content_type, content_encoding, headers, properties, replays, failures,
    coalesce(edited_body, body) as body, edited_body is not null as edited, edited_type
from atelier.dead_letters
where replay_id = $1 and state = 'replay-requested' and forwarded_at is null
order by last_failed_at, id
limit $2
for update

-- name: mark_sent
-- An edited dead letter is resolved by its copy; any other stays replay-requested until an event of its message arrives.
with sent as (
    update atelier.dead_letters set
        forwarded_at = clock_timestamp(), changed_at = now(),
        state = case when edited_body is null then state else 'resolved' end
    where id = any($1::text[])
    returning id, target, sent_as
)
insert into atelier.dead_letter_history (letter_id, kind, said)
select id, 'sent', jsonb_build_object('to', target, 'as', sent_as) from sent

-- name: return_unsent
-- The message cannot be published, for example because its queue does not exist: the dead letter returns to its former state.
with returned as (
    update atelier.dead_letters set
        state = case when failures > 1 then 'failed-again' else 'unresolved' end, changed_at = now(),
        sent_as = message_id, edited_body = null, edited_type = null
    where id = $1
    returning id
)
insert into atelier.dead_letter_history (letter_id, kind, said) select id, 'not-sent', jsonb_build_object('why', $2::text) from returned

-- name: schedule_next_batch
update atelier.dead_letter_replays set next_at = clock_timestamp() + $2 * interval '1 second' where id = $1

-- name: mark_replay_done
update atelier.dead_letter_replays set done_at = now() where id = $1

-- name: progress
select done_at is not null as done,
    (select count(*) from atelier.dead_letters where replay_id = $1 and forwarded_at is not null) as sent
from atelier.dead_letter_replays where id = $1

-- name: apply_event
-- An event changes the dead letter of its message, unless the message failed after the event.
with changed as (
    update atelier.dead_letters set state = $3, changed_at = now()
    where sent_as = $1 and step = $2 and (state = 'replay-requested' or (state in ('unresolved', 'failed-again') and last_failed_at < $4))
    returning id
)
insert into atelier.dead_letter_history (letter_id, at, kind, said) select id, $4, $3, $5 from changed

-- name: change_state
with chosen as (
    select id from atelier.dead_letters as letter
    where atelier.dead_letter_selected(letter, $1) and state = any($2::text[])
    order by last_failed_at, id
    for update
), changed as (
    update atelier.dead_letters as letter set state = $3, changed_at = now() from chosen where letter.id = chosen.id returning letter.id
), recorded as (
    insert into atelier.dead_letter_history (letter_id, kind, said)
    select id, $4, jsonb_build_object('by', $5::text) from changed
)
select count(*) from changed

-- name: count_changeable
select count(*) from atelier.dead_letters as letter where atelier.dead_letter_selected(letter, $1) and state = any($2::text[])

-- name: purge
with deleted as (
    delete from atelier.dead_letters as letter
    where atelier.dead_letter_selected(letter, $1) and state = any($2::text[]) and changed_at < $3
    returning 1
)
select count(*) from deleted

-- name: count_purgeable
select count(*) from atelier.dead_letters as letter
where atelier.dead_letter_selected(letter, $1) and state = any($2::text[]) and changed_at < $3

-- name: export_ids
select id from atelier.dead_letters as letter where atelier.dead_letter_selected(letter, $1) order by last_failed_at, id

-- name: export
select letter.*, (
    select coalesce(jsonb_agg(jsonb_build_object('at', at, 'kind', kind, 'said', entry.said, 'failure_id', failure_id) order by number), '[]')
    from atelier.dead_letter_history as entry where letter_id = letter.id
) as history
from atelier.dead_letters as letter where id = any($1::text[]) order by last_failed_at, id

-- name: import
-- A dead letter that was replay-requested in the source database is unresolved here. A dead letter that exists already is not changed.
with letter as (
    insert into atelier.dead_letters (
        id, dead_queue, target, step, message_id, sent_as, job_id, tenant, type, content_type, content_encoding, group_id, code, message,
        exception_type, stack, shape, attempts, origin_exchange, origin_key, headers, body, size, state, failures, replays, edited_from,
        first_failed_at, last_failed_at, properties
    )
    values (
        $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22::bytea, octet_length($22::bytea),
        case when $23::text = 'replay-requested' then 'unresolved' else $23 end, $24, $25, $26, $27, $28, $29::bytea
    )
    on conflict (id) do nothing
    returning id
), imported as (
    insert into atelier.dead_letter_history (letter_id, failure_id, at, kind, said)
    select letter.id, entry.failure_id, entry.at, entry.kind, entry.said
    from letter, jsonb_to_recordset($30::jsonb || jsonb_build_array(jsonb_build_object('at', now(), 'kind', 'imported', 'said', '{}'::jsonb)))
        as entry (failure_id text, at timestamptz, kind text, said jsonb)
    on conflict (failure_id) do nothing
)
select count(*) from letter
