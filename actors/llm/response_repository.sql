-- name: schema
do $$ begin if to_regnamespace('atelier') is null then create schema atelier; end if; end $$;
create table if not exists atelier.responses (
    response_id text primary key,
    tenant text not null,
    status text not null,
    stored boolean not null,
    background boolean not null,
    previous_id text,
    request jsonb not null,
    lora_adapter text,
    response jsonb not null,
    fault jsonb,
    next_sequence integer not null default 0,
    runs integer not null default 0,
    run text,
    created_at timestamptz not null default now(),
    deadline timestamptz not null,
    ended_at timestamptz
);
create index if not exists responses_ended_at on atelier.responses (ended_at);
create index if not exists responses_unstored on atelier.responses (ended_at) where not stored;
create table if not exists atelier.response_items (
    response_id text not null references atelier.responses on delete cascade,
    number integer not null,
    item_id text not null,
    is_output boolean not null,
    item jsonb not null,
    primary key (response_id, number)
);
create index if not exists response_items_item_id on atelier.response_items (item_id);
create table if not exists atelier.response_events (
    response_id text not null references atelier.responses on delete cascade,
    first_sequence integer not null,
    last_sequence integer not null,
    events jsonb not null,
    primary key (response_id, first_sequence)
);

-- name: create
insert into atelier.responses
    (response_id, tenant, status, stored, background, previous_id, request, lora_adapter, response, deadline)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict do nothing
returning response_id

-- name: insert_item
insert into atelier.response_items (response_id, number, item_id, is_output, item) values ($1, $2, $3, $4, $5)

-- name: insert_events
insert into atelier.response_events (response_id, first_sequence, last_sequence, events) values ($1, $2, $3, $4)

-- name: set_next_sequence
update atelier.responses set next_sequence = $2 where response_id = $1

-- name: chain
-- The response $1 and those before it, the latest first. $3: how many at most.
with recursive chain as (
    select response_id, previous_id, status, 0 as depth from atelier.responses where response_id = $1 and tenant = $2 and stored
    union all
    select before.response_id, before.previous_id, before.status, chain.depth + 1
    from chain join atelier.responses before on before.response_id = chain.previous_id and before.tenant = $2
    where chain.depth + 1 < $3
)
select response_id, previous_id, status from chain order by depth

-- name: chain_size
select count(*) as items, coalesce(sum(octet_length(item::text)), 0) as bytes from atelier.response_items where response_id = any($1)

-- name: chain_items
-- Of the responses $1, in their order.
select item from unnest($1::text[]) with ordinality as chain (response_id, place) join atelier.response_items using (response_id)
order by place, number

-- name: referenced_items
-- Stored items by id; the latest of several with one id.
select distinct on (i.item_id) i.item_id, i.item
from atelier.response_items i join atelier.responses r using (response_id)
where i.item_id = any($1) and r.tenant = $2 and r.stored
order by i.item_id, r.created_at desc

-- name: referenced_size
-- In bytes, of what `referenced_items` returns.
select coalesce(sum(octet_length(item::text)), 0) from (
    select distinct on (i.item_id) i.item
    from atelier.response_items i join atelier.responses r using (response_id)
    where i.item_id = any($1) and r.tenant = $2 and r.stored
    order by i.item_id, r.created_at desc
) found

-- name: begin
-- Starts a run: from now on no earlier one may write.
update atelier.responses set run = $3, runs = runs + 1, status = 'in_progress', response = jsonb_set(response, '{status}', '"in_progress"')
where response_id = $1 and tenant = $2 and ended_at is null
returning request, lora_adapter, response, next_sequence, runs

-- name: note_fault
update atelier.responses set fault = $3 where response_id = $1 and run = $2 and ended_at is null

-- name: all_events
select events from atelier.response_events where response_id = $1 order by first_sequence

-- name: lock_run
-- A run writes only while it is the latest and the response has not ended.
select next_sequence from atelier.responses where response_id = $1 and run = $2 and ended_at is null for update

-- name: lock
select status, run, response, next_sequence
from atelier.responses where response_id = $1 and tenant = $2 for update

-- name: get
select status, response, fault from atelier.responses where response_id = $1 and tenant = $2

-- name: state
select status, stored, background, next_sequence, fault, ended_at is null and deadline < now() as expired
from atelier.responses where response_id = $1 and tenant = $2

-- name: end
update atelier.responses set status = $2, response = $3, fault = $4, next_sequence = $5, ended_at = now()
where response_id = $1

-- name: next_number
select coalesce(max(number) + 1, 0) from atelier.response_items where response_id = $1

-- name: events_after
select events, last_sequence from atelier.response_events where response_id = $1 and last_sequence > $2 order by first_sequence limit $3

-- name: sequences
select response_id, next_sequence, ended_at is not null as ended from atelier.responses where response_id = any($1)

-- name: delete
delete from atelier.responses where response_id = $1 and tenant = $2 returning response_id

-- name: input_items
-- $2: descending; $3: the number after which the page begins; $4: how many.
select item from atelier.response_items
where response_id = $1 and not is_output and ($3::integer is null or case when $2 then number < $3 else number > $3 end)
order by case when $2 then -number else number end
limit $4

-- name: number_of_item
select number from atelier.response_items where response_id = $1 and item_id = $2 and not is_output

-- name: purge
-- One batch. $1: days after which stored responses go; null: never. $2: seconds after which the others go. $3: size of the batch.
-- A response without an end goes as if it had ended at its deadline. Each condition is one of an index on `ended_at`.
with old as (
    select response_id from atelier.responses
    where (ended_at < now() - make_interval(secs => $1::float8 * 86400) and stored)
       or (ended_at < now() - make_interval(secs => $2::float8) and not stored)
       or (ended_at is null and deadline < now() - make_interval(secs => case when stored then $1::float8 * 86400 else $2::float8 end))
    limit $3 for update skip locked
), purged as (
    delete from atelier.responses using old where responses.response_id = old.response_id returning 1
)
select count(*) from purged
