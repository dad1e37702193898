//! The NBD server and client together, against hostile peers, and against other people's tools.

mod certificates;
mod client_reconnect;
mod client_server;
#[path = "../common/mod.rs"]
mod common;
mod counters;
mod daemon;
mod daemon_net;
mod exports;
mod extended;
mod fuzz;
mod hand_over;
mod interop;
mod interop_sparse;
mod interop_tls;
mod peer;
mod provision;
mod ram;
mod rollback;
mod served;
mod server_hostile;
mod server_protocol;
mod structured;
mod tls;
