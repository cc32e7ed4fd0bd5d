package repo

import (
	"errors"
	"fmt"

	"lifeboat/internal/seal"
)

// keyWithheld says what it means that something is sealed with a key generation
// that no key record has which the registry shows: a newer key record is gone or
// withheld, or what says so was forged. Who has seen the newer one does not get
// here (keySearch.known); who never did is told, for a registry that hides a key
// record can hide what came after it only by hiding all that was sealed with it
// (docs/threat-model.md). Nothing is refused: the generation is written where
// anybody with a login can write one, and what says so is left out, by name.
func (r *Repo) keyWithheld(err error) error {
	if !errors.Is(err, seal.ErrGeneration) {
		return err
	}
	k := r.keys.Load()
	if k == nil || len(r.opts.Identities) == 0 && r.opts.Passphrase == nil {
		return err // made by Create: it does not follow the keys
	}
	newest := Tag{Class: ClassKey, Number: k.number}
	r.withheldOnce.Do(func() {
		r.notice(fmt.Sprintf("something is sealed with a newer key than %s, the newest key record that the registry shows: it withholds a newer one and this may not be the newest state, or somebody forged what says so; %s", newest, compareKeys))
	})
	return fmt.Errorf("the newest key record that the registry shows is %s, so a newer one is missing or withheld, or this is forged; nothing of it is used; %s: %w", newest, compareKeys, err)
}

const compareKeys = "compare with what another host of the repository sees (lifeboat key list), or open it with a recovery kit that was made since"
