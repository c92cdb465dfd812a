//! How a new certificate authority takes the place of the present one. Pure.
//!
//! ```text
//! settled ──begin──▶ trusting ──reissue──▶ reissuing ──finish──▶ settled
//!  one authority      both are trusted,     both are trusted,     the new one alone
//!                     the old one signs     the new one signs
//! ```
//! Each turn is taken when every member has followed the one before, so that at no time one of them
//! shows a certificate that another one does not trust. Whoever is away meanwhile holds it up.

use crate::cluster::AuthorityKeys;
use crate::codec::DecodeError;
use merlin_proto::log;

/// How far the present rotation has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// Rises with every turn of every rotation.
    pub(crate) step: u64,
    pub(crate) stage: Stage,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    #[default]
    Settled,
    /// The next one is trusted, and signs nothing yet.
    Trusting(AuthorityKeys),
    /// The former one is still trusted, and signs nothing any more. Its certificate, in DER.
    Reissuing(Vec<u8>),
}

/// What takes it one step further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Begin(AuthorityKeys),
    Reissue,
    Finish,
}

impl Rotation {
    /// Takes a turn that was decided on at `step`. What comes too late changes nothing.
    pub(crate) fn turn(&mut self, authority: &mut AuthorityKeys, step: u64, turn: Turn) {
        if step != self.step {
            return;
        }
        let stage = match (&self.stage, turn) {
            (Stage::Settled, Turn::Begin(next)) => Stage::Trusting(next),
            (Stage::Trusting(next), Turn::Reissue) => {
                let former = std::mem::replace(authority, next.clone());
                Stage::Reissuing(former.certificate)
            }
            (Stage::Reissuing(_), Turn::Finish) => Stage::Settled,
            _ => return,
        };
        self.stage = stage;
        self.step += 1;
    }

    /// Certificates of the authorities that are trusted beside the present one.
    pub(crate) fn also_trusted(&self) -> Option<&[u8]> {
        match &self.stage {
            Stage::Settled => None,
            Stage::Trusting(next) => Some(&next.certificate),
            Stage::Reissuing(former) => Some(former),
        }
    }
}

// === encoding ===

impl From<&AuthorityKeys> for log::Authority {
    fn from(keys: &AuthorityKeys) -> Self {
        Self {
            certificate: keys.certificate.clone(),
            key: keys.key.clone(),
        }
    }
}

impl From<log::Authority> for AuthorityKeys {
    fn from(message: log::Authority) -> Self {
        Self {
            certificate: message.certificate,
            key: message.key,
        }
    }
}

impl Turn {
    pub(crate) fn to_log(&self, step: u64) -> log::RotationCommand {
        use log::rotation_command::Turn as Message;
        let turn = match self {
            Self::Begin(next) => Message::Begin(next.into()),
            Self::Reissue => Message::Reissue(true),
            Self::Finish => Message::Finish(true),
        };
        log::RotationCommand {
            step,
            turn: Some(turn),
        }
    }

    pub(crate) fn from_log(message: log::RotationCommand) -> Result<(u64, Self), DecodeError> {
        use log::rotation_command::Turn as Message;
        let missing = DecodeError::Missing {
            what: "the turn of a rotation",
        };
        let turn = match message.turn.ok_or(missing)? {
            Message::Begin(next) => Self::Begin(next.into()),
            Message::Reissue(_) => Self::Reissue,
            Message::Finish(_) => Self::Finish,
        };
        Ok((message.step, turn))
    }
}

impl From<&Rotation> for log::Rotation {
    fn from(rotation: &Rotation) -> Self {
        use log::rotation::Stage as Message;
        let stage = match &rotation.stage {
            Stage::Settled => None,
            Stage::Trusting(next) => Some(Message::Next(next.into())),
            Stage::Reissuing(former) => Some(Message::Former(former.clone())),
        };
        Self {
            step: rotation.step,
            stage,
        }
    }
}

impl From<log::Rotation> for Rotation {
    fn from(message: log::Rotation) -> Self {
        use log::rotation::Stage as Message;
        let stage = match message.stage {
            None => Stage::Settled,
            Some(Message::Next(next)) => Stage::Trusting(next.into()),
            Some(Message::Former(former)) => Stage::Reissuing(former),
        };
        Self {
            step: message.step,
            stage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(name: u8) -> AuthorityKeys {
        AuthorityKeys {
            certificate: vec![name],
            key: vec![name, name],
        }
    }

    #[test]
    fn a_rotation_goes_through_its_stages_and_leaves_the_new_authority() {
        let (mut present, mut rotation) = (keys(1), Rotation::default());
        assert_eq!(rotation.also_trusted(), None);

        rotation.turn(&mut present, 0, Turn::Begin(keys(2)));
        assert_eq!((&present, rotation.step), (&keys(1), 1));
        assert_eq!(rotation.also_trusted(), Some(&[2][..]));

        rotation.turn(&mut present, 1, Turn::Reissue);
        assert_eq!((&present, rotation.step), (&keys(2), 2));
        assert_eq!(rotation.also_trusted(), Some(&[1][..]));

        rotation.turn(&mut present, 2, Turn::Finish);
        assert_eq!((&present, rotation.step), (&keys(2), 3));
        assert_eq!(rotation.also_trusted(), None);
    }

    #[test]
    fn a_turn_out_of_turn_changes_nothing() {
        let turns = [Turn::Begin(keys(9)), Turn::Reissue, Turn::Finish];
        let right = [Turn::Begin(keys(2)), Turn::Reissue, Turn::Finish];
        let (mut present, mut rotation) = (keys(1), Rotation::default());
        for (at, next) in right.iter().enumerate() {
            let before = (present.clone(), rotation.clone());
            for (other, turn) in turns.iter().enumerate() {
                // Of another stage, or decided on before the last turn.
                let step = rotation.step - u64::from(other == at && rotation.step > 0);
                if other != at || step != rotation.step {
                    rotation.turn(&mut present, step, turn.clone());
                }
            }
            assert_eq!((present.clone(), rotation.clone()), before);
            rotation.turn(&mut present, rotation.step, next.clone());
        }
        assert_eq!(rotation.step, 3);
    }

    #[test]
    fn every_stage_and_every_turn_survives_its_encoding() {
        let stages = [
            Stage::Settled,
            Stage::Trusting(keys(2)),
            Stage::Reissuing(vec![1]),
        ];
        for (step, stage) in (0..).zip(stages) {
            let rotation = Rotation { step, stage };
            let message = log::Rotation::from(&rotation);
            assert_eq!(Rotation::from(message), rotation);
        }
        for turn in [Turn::Begin(keys(2)), Turn::Reissue, Turn::Finish] {
            let decoded = Turn::from_log(turn.to_log(7)).unwrap();
            assert_eq!(decoded, (7, turn));
        }
    }
}
