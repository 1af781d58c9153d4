//! What every connection and every request pays before it is routed: hello, header block, header rewriting.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use itsup_proxy::PathPrefix;
use itsup_proxy::internals::{has_dot_segments, head, headers, hello, normalize};

/// As curl with OpenSSL sends it.
const HELLO: &[u8] = include_bytes!("../proxy/fuzz/corpus/hello/openssl");
const SPLIT_HELLO: &[u8] = include_bytes!("../proxy/fuzz/corpus/hello/records_of_10");

const SMALL: &str = "GET / HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";
const BROWSER: &str = "GET /assets/app.3f2a1b.js?v=12 HTTP/1.1\r\n\
Host: shop.example.com\r\n\
Connection: keep-alive\r\n\
sec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\"\r\n\
sec-ch-ua-mobile: ?0\r\n\
sec-ch-ua-platform: \"Linux\"\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
Accept: */*\r\n\
Sec-Fetch-Site: same-origin\r\n\
Sec-Fetch-Mode: no-cors\r\n\
Sec-Fetch-Dest: script\r\n\
Referer: https://shop.example.com/checkout\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
Cookie: session=4c0f2b8ad77e4b0b9a4f6b2a1f0c8d21; theme=dark; cart=12345\r\n\
\r\n";

fn hellos(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hello");
    for (name, bytes) in [("one record", HELLO), ("records of 10 bytes", SPLIT_HELLO)] {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| hello::parse(black_box(bytes))));
    }
    group.finish();
}

fn heads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("head");
    for (name, block) in [("small", SMALL), ("browser", BROWSER)] {
        group.throughput(Throughput::Bytes(block.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| head::HeadReader::new(64 * 1024, 128).check(black_box(block.as_bytes())));
        });
    }
    group.finish();
}

fn names(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("names");
    group.bench_function("normalize host", |bencher| {
        bencher.iter(|| normalize(black_box(b"Shop.Example.com:8443"), &mut [0; 256]).map(str::len));
    });
    let prefix: PathPrefix = "/assets/js".parse().expect("a path");
    group
        .bench_function("match path", |bencher| bencher.iter(|| prefix.matches(black_box("/assets/js/app.3f2a1b.js"))));
    group.bench_function("dot segments", |bencher| {
        bencher.iter(|| has_dot_segments(black_box(b"/assets/js/app.3f2a1b.js")));
    });
    group.finish();
}

fn rewriting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("headers to upstream");
    for (name, block) in [("small", SMALL), ("browser", BROWSER)] {
        let sample = headers::Sample::new(block);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(|| sample.clone(), |mut sample| sample.rewrite(), criterion::BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(benches, hellos, heads, names, rewriting);
criterion_main!(benches);
