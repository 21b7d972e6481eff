"""The shell that both servers share: listening, guarding, metrics, the versions held, admin."""
