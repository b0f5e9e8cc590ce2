-- The source system's database as its own documents describe it, from before vlm_traces named variants: its tables, and its triggers,
-- which tell every state by NOTIFY and roll the variants' states up into their job's.
create table jobs (
    pk serial, job_id uuid primary key default gen_random_uuid(), tenant_id varchar(255), store_id uuid, status text default 'queued',
    current_step text, version text, retry_count integer default 0, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table image_assets (
    pk serial, image_asset_id uuid primary key default gen_random_uuid(), image_type varchar(50), image_url text, tenant_id varchar(255),
    job_id uuid, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table job_inputs (job_id uuid primary key references jobs, desc_kor varchar(30), desc_eng text);
create table jobs_variants (
    pk serial, job_variants_id uuid primary key default gen_random_uuid(), job_id uuid references jobs, img_asset_id uuid,
    creation_order integer not null, selected boolean default false, status text default 'queued', current_step text default 'vlm_analyze',
    retry_count integer default 0, overlaid_img_asset_id uuid, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table vlm_traces (
    pk serial, vlm_trace_id uuid primary key, job_id uuid, provider text, prompt_id uuid, operation_type text, request jsonb,
    response jsonb, latency_ms double precision, created_at timestamptz default now(), updated_at timestamptz default now()
);
create table txt_ad_copy_generations (
    pk serial, ad_copy_gen_id uuid primary key, job_id uuid, generation_stage text, ad_copy_kor text, ad_copy_eng text, status text,
    created_at timestamptz default now(), updated_at timestamptz default now()
);
create table overlay_layouts (
    pk serial, overlay_id uuid primary key, proposal_id uuid, job_variants_id uuid, layout jsonb, x_ratio decimal(5, 4),
    y_ratio decimal(5, 4), width_ratio decimal(5, 4), height_ratio decimal(5, 4), created_at timestamptz default now()
);

create function notify_job_state_changed() returns trigger language plpgsql as $$
begin
    perform pg_notify('job_state_changed', json_build_object(
        'job_id', new.job_id, 'current_step', new.current_step, 'status', new.status, 'tenant_id', new.tenant_id, 'updated_at', new.updated_at
    )::text);
    return new;
end $$;
create trigger trigger_notify_job_state_changed after update on jobs for each row
    when (old.status is distinct from new.status or old.current_step is distinct from new.current_step)
    execute function notify_job_state_changed();

create function notify_job_variant_state_changed() returns trigger language plpgsql as $$
begin
    perform pg_notify('job_variant_state_changed', json_build_object(
        'job_variants_id', new.job_variants_id, 'job_id', new.job_id, 'current_step', new.current_step, 'status', new.status,
        'img_asset_id', new.img_asset_id, 'tenant_id', (select tenant_id from jobs where job_id = new.job_id), 'updated_at', new.updated_at
    )::text);
    return new;
end $$;
create trigger trigger_notify_job_variant_state_changed after update on jobs_variants for each row
    when (old.status is distinct from new.status or old.current_step is distinct from new.current_step or old.updated_at is distinct from new.updated_at)
    execute function notify_job_variant_state_changed();

create function check_all_variants_done() returns trigger language plpgsql as $$
declare
    total integer; done integer; failed integer; steps integer; state text;
begin
    if new.status not in ('done', 'failed') or new.current_step = 'img_gen' then
        return new;
    end if;
    select count(*), count(*) filter (where status = 'done'), count(*) filter (where status = 'failed'), count(distinct current_step)
        into total, done, failed, steps from jobs_variants where job_id = new.job_id;
    -- A busy database: whoever is done at the same time does not see this one yet.
    perform pg_sleep(0.2);
    state := case when done = total and steps = 1 then 'done' when failed > 0 and done + failed = total then 'failed' else 'running' end;
    update jobs set status = state, current_step = new.current_step, updated_at = now()
        where job_id = new.job_id and (status, current_step) is distinct from (state, new.current_step);
    return new;
end $$;
create trigger trigger_check_all_variants_done after update of status, current_step on jobs_variants for each row
    execute function check_all_variants_done();
