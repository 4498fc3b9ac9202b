"""What training minimises: each objective gives (loss sum, weight sum, metrics)."""
