"""Other libraries' quantizers over ours: their names, defaults, results and state keys. Thin: they translate and delegate."""
