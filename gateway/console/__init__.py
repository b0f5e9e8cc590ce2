"""The web console: server-rendered pages built on bus queries. No build step; no asset is loaded from another host."""
