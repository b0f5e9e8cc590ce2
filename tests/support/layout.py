"""The layout of the packages: which folders there are, and which modules stand beside them. The architecture test holds the tree to it."""

SUB_PACKAGES = frozenset({
    "contracts",
    "bus", "bus/amqp", "bus/worker", "bus/persistence", "bus/net", "bus/storage", "bus/observability", "bus/dead_letters",
    "actors", "actors/adapters", "actors/attachments", "actors/imaging", "actors/llm", "actors/moderation", "actors/vision",
    "actors/webhooks", "actors/decoding", "actors/engines", "actors/engines/process", "actors/engines/diffusion",
    "actors/embeddings", "actors/engines/embedding", "actors/engines/diffusion/families",
    "actors/engines/diffusion/lora", "actors/engines/moderation",
    "actors/engines/language", "actors/engines/language/families", "actors/engines/remote", "actors/engines/vllm",
    "gateway", "gateway/middleware", "gateway/jobs", "gateway/text", "gateway/admin", "gateway/compat", "gateway/openai", "gateway/docs",
    "gateway/console",
    "ops", "ops/commands", "ops/local", "ops/docgen", "ops/docgen/asyncapi",
    "benchmarks", "benchmarks/peers", "training",
})  # fmt: skip

FILES_AT_TOP: dict[str, frozenset[str]] = {
    "bus": frozenset(
        {"actor", "delivery", "outcome", "routing_slip", "errors", "ids", "retry", "sql", "settings", "masking", "secrets", "json_text"}
    ),
    "gateway": frozenset(
        {"app", "apis", "services", "commands", "serve", "settings", "problems", "callers", "deadlines", "strict_model", "sse"}
        | {"connections", "http_protocol", "json_body", "memory_budget"}
    ),
    "actors/engines": frozenset({"settings", "shared_resource"}),
    "ops": frozenset({"cli", "registry", "supervisor", "up", "settings", "errors", "checkout", "broker_roles", "broker_users"}),
}
"""The modules that stand in a package itself; what is missing here is free. Steps stand in actors/, one module each."""

SHORT_MODULES = frozenset({
    "bus/ids.py",  # derived ids are a rule of their own
    "bus/sql.py",
    "bus/net/addresses.py",  # ssrf and the stores use it
    "bus/amqp/propagation.py",
    "bus/observability/settings.py",
    "ops/errors.py",
    "gateway/openai/strict_body.py",  # the base of all requests in OpenAI's form
    "actors/engines/diffusion/schedulers.py",  # the scheduler names of the contract
})  # fmt: skip
