//! The `postrider` binary: hands over to [`postrider::cli`].

fn main() {}
