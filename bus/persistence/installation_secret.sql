-- name: schema
do $$ begin if to_regnamespace('atelier') is null then create schema atelier; end if; end $$;
create table if not exists atelier.installation (
    name text primary key,
    value text not null
);

-- name: insert
insert into atelier.installation (name, value) values ('secret', $1) on conflict (name) do nothing

-- name: get
select value from atelier.installation where name = 'secret'
