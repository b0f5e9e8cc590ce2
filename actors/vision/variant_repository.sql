-- name: schema
-- Creates the source system's tables in a database that lacks them; existing ones are not changed.
-- The schema `public` is always named: for a user called `atelier`, `jobs` alone would mean the ledger's table.
do $$ begin if to_regnamespace('atelier') is null then create schema atelier; end if; end $$;
do $$
begin
    if to_regclass('public.jobs_variants') is null then
        create table if not exists public.jobs (
            pk serial, job_id uuid primary key, tenant_id varchar(255), store_id uuid, status text default 'queued', current_step text,
            version text, retry_count integer default 0, created_at timestamptz default now(), updated_at timestamptz default now()
        );
        create table if not exists public.image_assets (
            pk serial, image_asset_id uuid primary key, image_type varchar(50), image_url text, mask_url text, width integer, height integer,
            creator_id uuid, tenant_id varchar(255), job_id uuid, created_at timestamptz default now(), updated_at timestamptz default now()
        );
        create table if not exists public.job_inputs (
            pk serial, job_id uuid primary key references public.jobs (job_id), img_asset_id uuid, tone_style_id uuid, desc_kor varchar(30),
            desc_eng text, created_at timestamptz default now(), updated_at timestamptz default now()
        );
        create table public.jobs_variants (
            pk serial, job_variants_id uuid primary key, job_id uuid references public.jobs (job_id), img_asset_id uuid,
            creation_order integer not null, selected boolean default false, status text default 'queued',
            current_step text default 'vlm_analyze', retry_count integer default 0, overlaid_img_asset_id uuid,
            created_at timestamptz default now(), updated_at timestamptz default now()
        );
        create table if not exists public.vlm_traces (
            pk serial, vlm_trace_id uuid primary key, job_id uuid, job_variants_id uuid references public.jobs_variants on delete set null,
            provider text, prompt_id uuid, operation_type text, request jsonb, response jsonb, latency_ms double precision,
            created_at timestamptz default now(), updated_at timestamptz default now()
        );
        create table if not exists public.txt_ad_copy_generations (
            pk serial, ad_copy_gen_id uuid primary key, job_id uuid, llm_trace_id uuid, generation_stage text, ad_copy_kor text,
            ad_copy_eng text, refined_ad_copy_eng text, status text default 'queued', created_at timestamptz default now(),
            updated_at timestamptz default now()
        );
        create table if not exists public.overlay_layouts (
            pk serial, overlay_id uuid primary key, proposal_id uuid, job_variants_id uuid, layout jsonb, x_ratio decimal(5, 4),
            y_ratio decimal(5, 4), width_ratio decimal(5, 4), height_ratio decimal(5, 4), text_margin varchar(50),
            latency_ms double precision, created_at timestamptz default now(), updated_at timestamptz default now()
        );
        create function public.notify_job_variant_state_changed() returns trigger language plpgsql as $body$
        begin
            perform pg_notify('job_variant_state_changed', json_build_object(
                'job_variants_id', new.job_variants_id, 'job_id', new.job_id, 'current_step', new.current_step, 'status', new.status,
                'img_asset_id', new.img_asset_id, 'tenant_id', (select tenant_id from public.jobs where job_id = new.job_id),
                'updated_at', new.updated_at
            )::text);
            return new;
        end $body$;
        create trigger job_variant_state_changed after insert or update of status, current_step, updated_at on public.jobs_variants
            for each row execute function public.notify_job_variant_state_changed();
    end if;
end $$;
create table if not exists atelier.variant_work (
    message_id text not null,
    step text not null,
    job_variants_id uuid not null,
    at timestamptz not null default now(),
    primary key (message_id, step)
);
create index if not exists variant_work_variant on atelier.variant_work (job_variants_id, step, at desc);

-- name: variant
select v.job_variants_id, v.job_id, v.img_asset_id, v.overlaid_img_asset_id, v.status, v.current_step, j.tenant_id, j.job_id is not null as has_job
from public.jobs_variants v left join public.jobs j on j.job_id = v.job_id
where v.job_variants_id = $1::uuid and ($2::text is null or j.tenant_id = $2)

-- name: asset
select image_url from public.image_assets where image_asset_id = $1::uuid

-- name: ad_copy
select coalesce(
    (
        select nullif(ad_copy_eng, '') from public.txt_ad_copy_generations
        where job_id = $1::uuid and generation_stage = 'ad_copy_eng' and status = 'done' order by created_at desc limit 1
    ),
    (select nullif(desc_eng, '') from public.job_inputs where job_id = $1::uuid)
)

-- name: layout
select layout, x_ratio, y_ratio, width_ratio, height_ratio from public.overlay_layouts where overlay_id = $1::uuid and job_variants_id = $2::uuid

-- name: layout_of_variant
select layout, x_ratio, y_ratio, width_ratio, height_ratio from public.overlay_layouts
where job_variants_id = $1::uuid order by created_at desc limit 1

-- name: layouts_of_variant
select layout, x_ratio, y_ratio, width_ratio, height_ratio from public.overlay_layouts where job_variants_id = $1::uuid

-- name: assets_of_variant
select image_url from public.image_assets a join public.jobs_variants v on a.image_asset_id in (v.img_asset_id, v.overlaid_img_asset_id)
where v.job_variants_id = $1::uuid

-- name: record_owner
insert into atelier.variant_work (message_id, step, job_variants_id) values ($1, $2, $3::uuid) on conflict do nothing

-- name: is_owner
select true from atelier.variant_work where message_id = $1 and step = $2

-- name: start
update public.jobs_variants set status = 'running', current_step = $2, updated_at = clock_timestamp() where job_variants_id = $1::uuid

-- name: start_once
update public.jobs_variants set status = 'running', current_step = $2, updated_at = clock_timestamp()
where job_variants_id = $1::uuid and current_step = $3 and status = 'done'
returning true

-- name: lock_job
-- The source system's trigger counts a job's finished variants when one is marked done. Two concurrent transactions would not see each
-- other's variant, and the job would never be done. So one waits here for the other's commit, which its next statements see.
select pg_advisory_xact_lock(hashtextextended('atelier/variants/' || job_id, 0)) from public.jobs_variants where job_variants_id = $1::uuid

-- name: owned_variant
select job_variants_id from atelier.variant_work where message_id = $1 and step = $2

-- name: finish
update public.jobs_variants set status = 'done', current_step = $2, updated_at = clock_timestamp() where job_variants_id = $1::uuid

-- name: fail
-- Only the variant that this message worked on, and only if it is the tenant's, or the installation's message.
update public.jobs_variants v set status = 'failed', current_step = $2, updated_at = clock_timestamp()
from atelier.variant_work w
where w.message_id = $1 and w.step = $2 and v.job_variants_id = w.job_variants_id and not (v.status = 'failed' and v.current_step = $2)
  and ($3::text is null or exists (select from public.jobs j where j.job_id = v.job_id and j.tenant_id = $3))
returning v.job_variants_id

-- name: trace
-- The id is derived from the message, so a redelivery adds no second row.
insert into public.vlm_traces (vlm_trace_id, job_id, job_variants_id, provider, operation_type, request, response, latency_ms, created_at, updated_at)
select $1::uuid, $2::uuid, $3::uuid, 'llava', $4, $5::jsonb, $6::jsonb, $7, clock_timestamp(), clock_timestamp()
where not exists (select from public.vlm_traces where vlm_trace_id = $1::uuid)

-- name: trace_without_variant
-- For an older source system whose vlm_traces lacks job_variants_id.
insert into public.vlm_traces (vlm_trace_id, job_id, provider, operation_type, request, response, latency_ms, created_at, updated_at)
select $1::uuid, $2::uuid, 'llava', $3, $4::jsonb, $5::jsonb, $6, clock_timestamp(), clock_timestamp()
where not exists (select from public.vlm_traces where vlm_trace_id = $1::uuid)

-- name: traces_have_variant
select exists (select from pg_attribute where attrelid = to_regclass('public.vlm_traces') and attname = 'job_variants_id' and not attisdropped)

-- name: earlier_verdict
select t.vlm_trace_id, t.response
from atelier.variant_work w join public.vlm_traces t on t.vlm_trace_id = md5('vlm_trace/' || w.message_id)::uuid
where w.job_variants_id = $1::uuid and w.step = $2
order by t.created_at desc limit 1
