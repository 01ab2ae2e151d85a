//! Upper, init and lowers made into one tree: which entry a name stands for, what a directory lists,
//! which attributes an object shows.

pub mod attr;
