"""What travels: ids and rows packed, frames, answers, and a client's channel."""
