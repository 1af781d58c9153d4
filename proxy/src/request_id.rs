//! Request ids: 128 random bits as 32 hexadecimal digits.

/// One request's id, kept on the stack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId([u8; 32]);

impl RequestId {
    /// Makes a new id. Unpredictable enough to tell requests apart, not to keep a secret.
    pub(crate) fn random() -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut bits = fastrand::u128(..);
        let mut text = [0; 32];
        for digit in &mut text {
            *digit = DIGITS[(bits & 15) as usize];
            bits >>= 4;
        }
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        // Only digits were ever written.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}
