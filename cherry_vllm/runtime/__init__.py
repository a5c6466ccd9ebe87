"""What a run needs of the machine: processes, progress, installed versions."""
