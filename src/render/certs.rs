//! Certificates, for people.

use std::fmt::Write as _;
use std::io;

use itsup_control::acme::issuer::UpdateReport;
use itsup_control::status::{CertificateReport, RootReport};

use super::table::{Colour, Table};
use super::{Output, colour};
use crate::failure::Failure;

impl Output {
    pub(crate) fn certs(&self, certificates: &[CertificateReport]) -> Result<(), Failure> {
        self.result(&certificates, || certs_text(certificates, colour(&io::stdout())))
    }

    pub(crate) fn root(&self, root: &RootReport) -> Result<(), Failure> {
        self.result(root, || root_text(root))
    }

    /// What was ordered; hosts that failed make it a failure.
    pub(crate) fn certs_updated(&self, report: &UpdateReport) -> Result<(), Failure> {
        self.result(report, || updated_text(report))?;
        if report.failed.is_empty() {
            return Ok(());
        }
        let hosts =
            if report.failed.len() == 1 { "1 host has".into() } else { format!("{} hosts have", report.failed.len()) };
        let hint = "`itsup certs` says when each is tried again; until then the certificate from before serves, or the internal CA's";
        Err(Failure::with_hint(format!("{hosts} no new certificate"), hint))
    }
}

/// Hosts that a CA has refused, one line each.
pub(super) fn failures(certificates: &[CertificateReport]) -> impl Iterator<Item = String> {
    certificates.iter().filter_map(|certificate| {
        let acme = certificate.acme.as_ref()?;
        let error = acme.error.as_ref()?;
        Some(format!(
            "certificate of {}: {}",
            certificate.host,
            told(error, acme.advice.as_deref(), acme.next_try.as_deref())
        ))
    })
}

fn told(error: &str, advice: Option<&str>, next: Option<&str>) -> String {
    let mut text = error.to_owned();
    // Writing to a String cannot fail, here and below.
    if let Some(advice) = advice {
        let _ = write!(text, "; {advice}");
    }
    if let Some(next) = next {
        let _ = write!(text, "; next try {next}");
    }
    text
}

pub(super) fn certs_text(certificates: &[CertificateReport], coloured: bool) -> String {
    let mut table = Table::new();
    table.head(["HOST", "ISSUER", "DAYS LEFT", "NEXT RENEWAL", "LAST ERROR"]);
    for certificate in certificates {
        let left = certificate.days_left.to_string();
        let left_colour = match (certificate.source.as_str(), certificate.days_left) {
            (_, days) if days < 1 => Colour::Red,
            ("internal", _) => Colour::Green,
            (_, days) if days < 7 => Colour::Yellow,
            _ => Colour::Green,
        };
        let acme = certificate.acme.as_ref();
        let renewal = match (acme, certificate.source.as_str()) {
            (Some(acme), _) if acme.under_way => "under way".to_owned(),
            (Some(acme), _) => acme.renewal.as_deref().or(acme.next_try.as_deref()).unwrap_or("-").to_owned(),
            (None, "internal") => "by itself".to_owned(),
            (None, _) => "yours to renew".to_owned(),
        };
        let error = acme.and_then(|acme| {
            let error = acme.error.as_deref()?;
            Some(told(error, acme.advice.as_deref(), acme.next_try.as_deref()))
        });
        table.row([
            (certificate.host.as_str(), None),
            (certificate.issuer.as_str(), None),
            (left.as_str(), Some(left_colour)),
            (renewal.as_str(), None),
            (error.as_deref().unwrap_or("-"), error.as_ref().map(|_| Colour::Red)),
        ]);
    }
    table.render(coloured)
}

fn updated_text(report: &UpdateReport) -> String {
    let mut text = String::new();
    if report.revoked {
        text.push_str("revoked\n");
    }
    for host in &report.renewed {
        let _ = writeln!(text, "{host}: a new certificate");
    }
    for failed in &report.failed {
        let _ = writeln!(text, "{}: {}", failed.host, failed.error);
    }
    if report.not_due > 0 {
        let _ = writeln!(text, "{} not due", report.not_due);
    }
    if text.is_empty() {
        text.push_str("nothing to do\n");
    }
    text
}

fn root_text(root: &RootReport) -> String {
    let pairs: Vec<&str> = root.sha256.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok()).collect();
    let path = &root.path;
    format!(
        "{path}\n\
         SHA-256 {}\n\
         ends {}\n\
         \n\
         To trust it, on each device (the file holds no secret; copy it as itsup.crt):\n\
         Debian, Ubuntu      cp {path} /usr/local/share/ca-certificates/itsup.crt && update-ca-certificates\n\
         Fedora              cp {path} /etc/pki/ca-trust/source/anchors/itsup.crt && update-ca-trust\n\
         Chromium, Linux     certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n itsup -i {path}\n\
         Firefox             Settings, Certificates, Authorities, Import\n\
         macOS               security add-trusted-cert -d -k /Library/Keychains/System.keychain itsup.crt\n\
         Windows             certutil -addstore Root itsup.crt\n\
         iOS, Android        open the file, then trust it in the settings\n",
        pairs.join(":").to_uppercase(),
        root.not_after,
    )
}
