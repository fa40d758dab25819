"""What people see and read: one console, quiet or not, with a log file or without, and what helps them on."""
