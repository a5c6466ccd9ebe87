"""A side room: two models' answers to one test set, compared by a judge model."""
