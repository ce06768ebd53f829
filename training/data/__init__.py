"""Pictures and what is known of them: data sets as they lie on disk or are drawn, and their batches."""
