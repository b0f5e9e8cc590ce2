"""What the embed actor needs: its settings, and the models behind it, which are a server or a process of the worker."""
