use bytes::Bytes;
pub(crate) struct Page {
    pub content_type: &'static str,
    pub body: Bytes,
}
pub(crate) fn render(status: u16, _accept: Option<&[u8]>, id: &str) -> Page {
    Page { content_type: "text/plain", body: format!("{status} {id}\n").into() }
}
