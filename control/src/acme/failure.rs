//! What follows when names of an order could not be proven: another kind of proof, an order without them, or a wait.
//!
//! Pure.

use itsup_proxy::HostPattern;

use super::due::Proof;
use super::order::RefusedName;
use super::wishes::Order;

/// What is done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The same order, by the next kind of proof.
    AnotherProof,
    /// The order without these names, which get orders of their own.
    WithoutThem(Vec<(String, String)>),
    /// A wait, for this reason.
    Wait(String),
}

/// Decides. `round` is how many kinds of proof have failed before this one since the last wait.
pub(super) fn next(refused: &[RefusedName], order: &Order, round: usize, proofs: &[Proof]) -> Next {
    let exact = |name: &RefusedName| !name.name.starts_with("*.");
    if refused.iter().any(|name| exact(name) && !name.whatever_proof) && round + 1 < proofs.len() {
        return Next::AnotherProof;
    }
    let is_refused = |name: &HostPattern| refused.iter().any(|refused| refused.name == name.to_string());
    let failing = order.names.iter().filter(|name| is_refused(name)).count();
    if failing > 0 && failing < order.names.len() {
        return Next::WithoutThem(refused.iter().map(|name| (name.name.clone(), name.why.clone())).collect());
    }
    let all: Vec<String> = match refused {
        [one] => vec![one.why.clone()],
        many => many.iter().map(|name| format!("{}: {}", name.name, name.why)).collect(),
    };
    Next::Wait(all.join("; "))
}

/// The kind of proof after this one.
pub(super) fn proof_after(proof: Proof, proofs: &[Proof]) -> Option<Proof> {
    let at = proofs.iter().position(|known| *known == proof)?;
    proofs.get((at + 1) % proofs.len()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: [Proof; 2] = [Proof::Http, Proof::TlsAlpn];

    fn order(names: &[&str]) -> Order {
        let names: Vec<HostPattern> = names.iter().map(|name| HostPattern::parse(name).unwrap()).collect();
        let (key, folder) = (names[0].to_string(), names[0].to_string());
        Order { key, folder, hosts: names.clone(), names, parent: None }
    }

    fn refused(name: &str, whatever_proof: bool) -> RefusedName {
        RefusedName { name: name.into(), why: format!("{name} is bad"), whatever_proof }
    }

    #[test]
    fn each_proof_is_tried_once_and_then_the_bad_ones_go() {
        let order = order(&["a.com", "b.com"]);
        assert_eq!(next(&[refused("b.com", false)], &order, 0, &TWO), Next::AnotherProof);
        let split = Next::WithoutThem(vec![("b.com".into(), "b.com is bad".into())]);
        assert_eq!(next(&[refused("b.com", false)], &order, 1, &TWO), split);
        assert_eq!(next(&[refused("b.com", true)], &order, 0, &TWO), split, "no proof would help");
        let both = [refused("a.com", false), refused("b.com", false)];
        let wait = Next::Wait("a.com: a.com is bad; b.com: b.com is bad".into());
        assert_eq!(next(&both, &order, 1, &TWO), wait);
    }

    #[test]
    fn a_wildcard_has_one_proof_alone() {
        let alone = order(&["*.a.com"]);
        assert_eq!(next(&[refused("*.a.com", false)], &alone, 0, &TWO), Next::Wait("*.a.com is bad".into()));
        let among = order(&["b.com", "*.a.com"]);
        let split = Next::WithoutThem(vec![("*.a.com".into(), "*.a.com is bad".into())]);
        assert_eq!(next(&[refused("*.a.com", false)], &among, 0, &TWO), split);
    }

    #[test]
    fn proofs_take_turns() {
        assert_eq!(proof_after(Proof::Http, &TWO), Some(Proof::TlsAlpn));
        assert_eq!(proof_after(Proof::TlsAlpn, &TWO), Some(Proof::Http));
        assert_eq!(proof_after(Proof::Dns, &TWO), None);
    }
}
