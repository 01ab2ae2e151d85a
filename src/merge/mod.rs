//! Upper, init and lowers made into one tree: which entry a name stands for, what a directory lists,
//! which number and attributes an object shows.

pub mod attr;
pub mod index;
pub mod listing;
pub mod lookup;
pub mod lowers;
pub mod number;
pub mod whiteout;
