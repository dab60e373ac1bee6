"""What Ray has and loses: its connection, its nodes, actors for tasks, failures, stopping."""
