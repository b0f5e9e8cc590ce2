-- name: schema
do $$ begin if to_regnamespace('atelier') is null then create schema atelier; end if; end $$;
create table if not exists atelier.conversations (
    conversation_id text primary key,
    tenant text not null,
    turns integer not null default 0,
    updated_at timestamptz not null default now()
);
create index if not exists conversations_of_tenant on atelier.conversations (tenant, updated_at desc);
create table if not exists atelier.conversation_messages (
    conversation_id text not null references atelier.conversations on delete cascade,
    number integer not null,
    role text not null,
    content text not null,
    at timestamptz not null,
    image_info jsonb,
    file_info jsonb,
    primary key (conversation_id, number)
);

-- name: conversation_exists
select true from atelier.conversations where conversation_id = $1 and tenant = $2

-- name: history
-- Waits for a transaction that is appending a turn.
select turns from atelier.conversations where conversation_id = $1 and tenant = $2 for update

-- name: messages
select m.role, m.content, m.at as timestamp, m.image_info, m.file_info
from atelier.conversation_messages m join atelier.conversations c using (conversation_id)
where m.conversation_id = $1 and c.tenant = $2
order by m.number

-- name: last_messages
select * from (
    select m.number, m.role, m.content
    from atelier.conversation_messages m
    where m.conversation_id = $1
    order by m.number desc
    limit $2
) as last order by number

-- name: begin
insert into atelier.conversations (conversation_id, tenant) values ($1, $2) on conflict do nothing

-- name: turn
update atelier.conversations set turns = turns + 1, updated_at = now()
where conversation_id = $1 and tenant = $2 and turns = $3
returning turns

-- name: append
insert into atelier.conversation_messages (conversation_id, number, role, content, at, image_info, file_info)
values ($1, $2, $3, $4, $5, $6, $7)

-- name: summaries
select c.conversation_id, count(m.*) as message_count, max(c.updated_at) as last_message_time,
    convert_to((array_agg(left(m.content, 204) order by m.number desc))[1], getdatabaseencoding()) as preview
from (
    select * from atelier.conversations where tenant = $1 and turns > 0 order by updated_at desc, conversation_id limit $2 offset $3
) as c join atelier.conversation_messages m using (conversation_id)
group by c.conversation_id, c.updated_at
order by c.updated_at desc, c.conversation_id

-- name: totals
select count(*) as conversations, coalesce(sum(turns), 0) * 2 as messages
from atelier.conversations where tenant = $1 and turns > 0

-- name: delete
delete from atelier.conversations where conversation_id = $1 and tenant = $2 and turns > 0 returning conversation_id

-- name: lock
select pg_try_advisory_lock($1, hashtext($2))

-- name: unlock
select pg_advisory_unlock($1, hashtext($2))
