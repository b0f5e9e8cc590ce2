-- name: insert_layout
insert into public.overlay_layouts
    (overlay_id, proposal_id, job_variants_id, layout, x_ratio, y_ratio, width_ratio, height_ratio, text_margin, latency_ms)
values ($1::uuid, $2::uuid, $3::uuid, $4, $5, $6, $7, $8, $9, $10)
on conflict (overlay_id) do nothing
