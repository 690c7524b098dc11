//! A million flows: listings answer or stream, their memory stays flat, and expiry stalls nobody.
