"""Fine-tuning on chosen rows, for the pre-experienced model and the cherry model."""
