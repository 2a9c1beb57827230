//! The broker in Redis. So far: what `fanwire doctor` looks at, in [`examine`].

pub mod examine;
