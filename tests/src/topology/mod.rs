//! Two sites with replicas of the EKM, and the load balancers of Google's reference topologies before them, each machine in a network
//! namespace of its own, to be broken. Only for a program that is in [namespaces](crate::namespaces) of its own.

mod balancer;
mod load;
mod network;
mod replica;
mod rig;
mod router;

pub use load::{Caller, Load, Sample};
pub use replica::Replica;
pub use rig::{Rig, Sites, Way};
