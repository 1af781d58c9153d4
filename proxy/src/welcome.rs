use bytes::Bytes;
pub(crate) fn page(host: &str) -> Bytes {
    format!("it's up: {host}\n").into()
}
