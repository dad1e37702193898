//! Moving bytes, shared by server and client: few system calls, few copies, bounded memory.

pub mod outbox;
pub mod receiver;
pub mod send;
pub mod stream;
