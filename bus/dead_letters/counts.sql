-- name: schema
-- How many dead letters there are, by cause, state and hour of the last failure. A change of `dead_letters` appends rows with the
-- difference in its own transaction, so that the sum is right in every snapshot and writers never wait for each other. `exact`: the two
-- times are those of the letters that are counted; not after letters have left, since the earliest may be among them.
create table if not exists atelier.dead_letter_counts (
    hour timestamptz not null,
    group_id text not null,
    step text not null,
    code text not null,
    exception_type text,
    state text not null,
    letters bigint not null,
    first_failed_at timestamptz not null,
    last_failed_at timestamptz not null,
    exact boolean not null,
    merged boolean not null default false
) with (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_insert_scale_factor = 0);
-- The key of 4,273,002 lets one session merge at a time; the others go on without.
create or replace function atelier.merge_dead_letter_counts() returns void language plpgsql as $$
begin
    if pg_try_advisory_xact_lock(4273002) then
        with changed as (
            select distinct hour, group_id, step, code, exception_type, state
            from atelier.dead_letter_counts where not merged or not exact
        ), taken as (
            delete from atelier.dead_letter_counts as counted using changed
            where (counted.hour, counted.group_id, counted.step, counted.code, counted.state)
                = (changed.hour, changed.group_id, changed.step, changed.code, changed.state)
                and counted.exception_type is not distinct from changed.exception_type
            returning counted.*
        )
        insert into atelier.dead_letter_counts -- where letters have left, the times are read from those that are left
        select hour, group_id, step, code, exception_type, state, letters, coalesce(left_over.first_failed_at, cell.first_failed_at),
            coalesce(left_over.last_failed_at, cell.last_failed_at), exact or left_over.first_failed_at is not null, true
        from (
            select hour, group_id, step, code, exception_type, state, sum(letters) as letters, min(first_failed_at) as first_failed_at,
                max(last_failed_at) as last_failed_at, bool_and(exact) as exact
            from taken group by hour, group_id, step, code, exception_type, state having sum(letters) <> 0
        ) as cell cross join lateral (
            select min(first_failed_at) as first_failed_at, max(last_failed_at) as last_failed_at
            from atelier.dead_letters as letter
            where not exact and letter.group_id = cell.group_id
                and letter.last_failed_at >= hour and letter.last_failed_at < hour + interval '1 hour'
                and (letter.step, letter.code, letter.state) = (cell.step, cell.code, cell.state)
                and letter.exception_type is not distinct from cell.exception_type
        ) as left_over;
    end if;
end $$;
create or replace function atelier.count_dead_letters() returns trigger language plpgsql as $$
begin
    if tg_op = 'TRUNCATE' then
        delete from atelier.dead_letter_counts;
    elsif tg_op = 'INSERT' then
        insert into atelier.dead_letter_counts
        values (date_trunc('hour', new.last_failed_at, 'UTC'), new.group_id, new.step, new.code, new.exception_type, new.state, 1,
            new.first_failed_at, new.last_failed_at, true);
    elsif tg_op = 'DELETE' then
        insert into atelier.dead_letter_counts
        select date_trunc('hour', last_failed_at, 'UTC') as hour, group_id, step, code, exception_type, state, -count(*),
            min(first_failed_at), max(last_failed_at), false
        from removed group by hour, group_id, step, code, exception_type, state;
    elsif not exists (select from added) then
        return null;
    else -- a letter whose columns here stay the same is in both, and in neither count
        insert into atelier.dead_letter_counts
        select hour, group_id, step, code, exception_type, state, sum(letters), min(first_failed_at), max(last_failed_at),
            bool_and(letters > 0)
        from (
            select date_trunc('hour', last_failed_at, 'UTC') as hour, group_id, step, code, exception_type, state, first_failed_at,
                last_failed_at, sum(letters) as letters
            from (select *, 1 as letters from added union all select *, -1 from removed) as change
            group by hour, group_id, step, code, exception_type, state, first_failed_at, last_failed_at having sum(letters) <> 0
        ) as difference
        group by hour, group_id, step, code, exception_type, state;
    end if;
    if random() < 0.0005 then -- reading 2,000 rows more takes a millisecond
        perform atelier.merge_dead_letter_counts();
    end if;
    return null;
end $$;
-- The letters of one statement together: a row for each cause, state and hour of them.
create or replace function atelier.count_added_dead_letters() returns trigger language plpgsql as $$
declare
    cells bigint;
begin
    insert into atelier.dead_letter_counts
    select date_trunc('hour', last_failed_at, 'UTC') as hour, group_id, step, code, exception_type, state, count(*), min(first_failed_at),
        max(last_failed_at), true
    from added group by hour, group_id, step, code, exception_type, state;
    get diagnostics cells = row_count;
    if random() < 0.0005 * cells then
        perform atelier.merge_dead_letter_counts();
    end if;
    return null;
end $$;
do $$
begin -- Once: a lock keeps writers out until what is there is counted. Workers of an earlier release write through the triggers as well.
      -- The index dead_letters_group of that release stays: to drop it here would need a stronger lock, and so could deadlock.
    if not exists (select from pg_trigger where tgrelid = 'atelier.dead_letters'::regclass and tgname = 'dead_letters_added') then
        lock table atelier.dead_letters in share row exclusive mode;
        create trigger dead_letters_added after insert on atelier.dead_letters
            for each row execute function atelier.count_dead_letters();
        create trigger dead_letters_changed after update on atelier.dead_letters
            referencing old table as removed new table as added for each statement execute function atelier.count_dead_letters();
        create trigger dead_letters_removed after delete on atelier.dead_letters
            referencing old table as removed for each statement execute function atelier.count_dead_letters();
        create trigger dead_letters_truncated after truncate on atelier.dead_letters execute function atelier.count_dead_letters();
        insert into atelier.dead_letter_counts
        select date_trunc('hour', last_failed_at, 'UTC') as hour, group_id, step, code, exception_type, state, count(*),
            min(first_failed_at), max(last_failed_at), true, true
        from atelier.dead_letters group by hour, group_id, step, code, exception_type, state;
        create index dead_letters_group_time on atelier.dead_letters (group_id, last_failed_at desc);
        create index dead_letters_tenant on atelier.dead_letters (tenant, last_failed_at desc);
        create index dead_letters_job on atelier.dead_letters (job_id);
        create index dead_letters_message on atelier.dead_letters (message_id) where sent_as <> message_id;
    end if;
    if not exists (select from pg_trigger where tgrelid = 'atelier.dead_letters'::regclass and tgname = 'dead_letters_added_together') then
        -- The trigger of an earlier release stays, disabled: to drop it would need a stronger lock, and without it that release, when it
        -- starts again, would count twice.
        lock table atelier.dead_letters in share row exclusive mode;
        create trigger dead_letters_added_together after insert on atelier.dead_letters
            referencing new table as added for each statement execute function atelier.count_added_dead_letters();
        alter table atelier.dead_letters disable trigger dead_letters_added;
    end if;
end $$;

-- name: total
select coalesce(sum(letters), 0)::bigint from atelier.dead_letter_counts where {conditions}

-- name: list
select {columns}, ({total}) as total from atelier.dead_letters where {conditions}
order by last_failed_at desc, id limit $1 offset $2

-- name: count
select count(*) from atelier.dead_letters where {conditions}

-- name: list_by_counts
-- The page by the counts: of the newest hours that fill it, the groups with matches, and of each no more letters than the page has.
with cells as (
    select hour, group_id, sum(letters) as letters from atelier.dead_letter_counts where {conditions}
    group by hour, group_id having sum(letters) > 0
), newest as (
    select hour, group_id from (
        select hour, group_id, sum(letters) over (order by hour desc groups between unbounded preceding and 1 preceding) as newer from cells
    ) as cell
    where newer is null or newer < $1::bigint + $2::bigint
)
select letter.*, (select sum(letters)::bigint from cells) as total
from newest cross join lateral (
    select {columns} from atelier.dead_letters
    where dead_letters.group_id = newest.group_id and last_failed_at >= newest.hour and last_failed_at < newest.hour + interval '1 hour'
        and {conditions}
    order by last_failed_at desc, id
    limit $1::bigint + $2::bigint
) as letter
order by last_failed_at desc, id
limit $1 offset $2

-- name: cells_of_counts
-- The counts add up as they are, but where letters have left: there the rows of an hour are summed, and its times are read from the letters.
select hour, group_id, null::text as tenant, state, letters, first_failed_at, last_failed_at
from atelier.dead_letter_counts as counted
where {conditions} and not exists (
    select from shrunk
    where (shrunk.hour, shrunk.group_id, shrunk.step, shrunk.code, shrunk.state)
        = (counted.hour, counted.group_id, counted.step, counted.code, counted.state)
        and shrunk.exception_type is not distinct from counted.exception_type
)
union all
select shrunk.hour, shrunk.group_id, null, shrunk.state, found.letters, found.first_failed_at, found.last_failed_at
from shrunk cross join lateral (
    select count(*) as letters, min(first_failed_at) as first_failed_at, max(last_failed_at) as last_failed_at
    from atelier.dead_letters as letter
    where letter.group_id = shrunk.group_id
        and letter.last_failed_at >= shrunk.hour and letter.last_failed_at < shrunk.hour + interval '1 hour'
        and (letter.step, letter.code, letter.state) = (shrunk.step, shrunk.code, shrunk.state)
        and letter.exception_type is not distinct from shrunk.exception_type
) as found
where found.letters > 0

-- name: cells_of_letters
select last_failed_at as hour, group_id, tenant, state, 1 as letters, first_failed_at, last_failed_at
from atelier.dead_letters where {conditions}

-- name: groups
-- $1: whether by tenant, $2: null, or "hour" or "day", $3: how many groups at most.
with shrunk as (
    select distinct hour, group_id, step, code, exception_type, state from atelier.dead_letter_counts where not exact and {counted}
), split as (
    select group_id, case when $1::boolean then tenant end as of_tenant, date_trunc($2::text, hour, 'UTC') as at, state,
        sum(letters)::integer as letters, min(first_failed_at) as first_failed_at, max(last_failed_at) as last_failed_at
    from ({cells}) as cell
    group by 1, 2, 3, 4
), merged as (
    select group_id, of_tenant, at, sum(letters)::integer as letters, jsonb_object_agg(state, letters) as states,
        min(first_failed_at) as first_failed_at, max(last_failed_at) as last_failed_at
    from split group by 1, 2, 3 order by 3 desc, 4 desc, 7 desc limit $3
)
select merged.group_id, step, code, exception_type, of_tenant as tenant, at, message, shape, letters, states, first_failed_at,
    merged.last_failed_at
from merged cross join lateral (
    select step, code, exception_type, message, shape from atelier.dead_letters
    where dead_letters.group_id = merged.group_id and dead_letters.last_failed_at = merged.last_failed_at
        and (not $1 or tenant is not distinct from of_tenant) and {conditions}
    order by id
    limit 1
) as latest
order by letters desc, last_failed_at desc
