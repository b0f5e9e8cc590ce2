-- name: due
-- Variants that wait for a verdict. $1: their ids, or null for all.
select v.job_variants_id, v.job_id, v.current_step, v.updated_at, j.tenant_id, o.overlay_id
from public.jobs_variants v
join public.jobs j on j.job_id = v.job_id
left join lateral (
    select overlay_id from public.overlay_layouts where job_variants_id = v.job_variants_id order by created_at desc limit 1
) o on v.current_step = 'overlay'
where v.status = 'done' and v.current_step in ('img_gen', 'overlay') and ($1::uuid[] is null or v.job_variants_id = any($1::uuid[]))
order by v.updated_at
