"""The console: pages for people, made here from what the bus answers. No build step, and nothing is fetched from another host."""
