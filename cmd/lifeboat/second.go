package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/ui"
)

// secondFlags name a second repository beside that of the settings: an exact copy
// of it, or another one with keys of its own.
type secondFlags struct {
	urls                    []string
	word                    string // of the flags
	keyFile, passphraseFile string
}

// add makes the flags --WORD, --WORD-key-file and --WORD-passphrase-file.
func (f *secondFlags) add(cmd *cobra.Command, word, what string) {
	f.word = word
	cmd.Flags().StringArrayVar(&f.urls, word, nil, "`URL` of "+what)
	cmd.Flags().StringVar(&f.keyFile, word+"-key-file", "", "age identity `FILE` that opens it, where it has a key of its own")
	cmd.Flags().StringVar(&f.passphraseFile, word+"-passphrase-file", "", "`FILE` with its passphrase")
}

// second is a second repository that was opened.
type second struct {
	url string
	// store is its registry; repo is nil where that holds an exact copy of the
	// repository of the settings.
	store store.Store
	repo  *repo.Repo
}

func (s *second) close() {
	if s.repo != nil {
		_ = s.repo.Close() // caches only
	}
}

// openSecond opens one second repository. It is read only: no host signs there.
func (a *app) openSecond(ctx context.Context, w *world, f secondFlags, url string) (*second, error) {
	if location(url) == location(w.src.url) {
		return nil, fmt.Errorf("%s is the repository itself: %w", location(url), dr.ErrUsage)
	}
	var o ocistore.Options
	var err error
	if at, _, ok := pick(w.src.mirrors, url); ok {
		o = at.registry
	} else if o, err = registryOptions(w.cfg, url); err != nil {
		return nil, err
	}
	o = a.connection(w, o)
	src := source{url: url, registry: o, identities: w.src.identities, passphrase: w.src.passphrase, stateDir: w.src.stateDir}
	st, err := ocistore.Open(ctx, url, o)
	if err != nil {
		return nil, err
	}
	s := &second{url: location(url), store: st}
	same, err := w.repo.SameRepository(ctx, st)
	if err != nil {
		return nil, a.explainRegistry(src, "nothing was changed", fmt.Errorf("%s: %w", s.url, err))
	}
	if same {
		return s, nil
	}
	if err := f.keys(&src); err != nil {
		return nil, err
	}
	s.repo, err = a.openRepo(ctx, &world{cfg: w.cfg, src: src, store: st, meter: w.meter}, nil)
	return s, err
}

// keys reads what opens a second repository, where it is not what opens the first.
func (f secondFlags) keys(src *source) error {
	src.second = f.word
	if f.keyFile != "" {
		raw, err := config.ReadSecretFile(f.keyFile)
		if err != nil {
			return explainSecret("key file", err, "name the right file")
		}
		if src.identities, err = age.ParseIdentities(bytes.NewReader(raw)); err != nil {
			return fmt.Errorf("key file %s does not hold an age identity: %w", f.keyFile, dr.ErrUsage)
		}
	}
	if ask := src.passphrase; f.passphraseFile == "" {
		src.passphrase = func() (string, error) {
			secret, err := ask()
			if errors.Is(err, dr.ErrWrongKey) {
				err = ui.Explained{What: err.Error(), State: "nothing was read or changed there", Next: src.nextSecond(true), Err: err}
			}
			return secret, err
		}
	} else {
		src.passphrase = func() (string, error) {
			secret, err := config.ReadSecretFile(f.passphraseFile)
			if err != nil {
				return "", explainSecret("passphrase file", err, "name the right file")
			}
			return strings.TrimRight(string(secret), "\r\n"), nil
		}
	}
	return nil
}

// nextSecond says which flags give the key of a second repository.
func (s source) nextSecond(passphrase bool) []string {
	next := []string{"name the key that opens " + location(s.url) + ": --" + s.second + "-key-file FILE  (of one of its recipients)"}
	if passphrase {
		next = append(next, "or its passphrase: --"+s.second+"-passphrase-file FILE")
	}
	return next
}

// repairSource is a second repository as repair uses it.
func (s *second) repairSource() repo.RepairSource {
	if s.repo != nil {
		return repo.RepairSource{Name: s.url, Other: s.repo}
	}
	return repo.RepairSource{Name: s.url, Exact: s.store}
}

// sourcesView says what each second repository is.
func sourcesView(list []*second) ui.View {
	t := ui.Table{Columns: []ui.Column{{Title: "source", Elastic: true}, {Title: "is"}}}
	for _, s := range list {
		is := "an exact copy"
		if s.repo != nil {
			is = "another repository, compared by content"
		}
		t.Rows = append(t.Rows, []string{s.url, is})
	}
	return t
}
