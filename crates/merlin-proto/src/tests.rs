mod generators;
mod golden_bytes;
mod requests;
mod round_trips;
mod statuses;
