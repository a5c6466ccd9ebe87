"""Side room: fine-tuning on chosen rows, for the pre-experienced and for the cherry model."""
