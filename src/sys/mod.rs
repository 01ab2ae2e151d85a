//! System calls: the only place of unsafe code.
