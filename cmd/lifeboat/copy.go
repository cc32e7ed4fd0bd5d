package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/copying"
	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/store"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/ui"
)

// copyFlags say what is copied and where to.
type copyFlags struct {
	to, keyFile, passphraseFile                 string
	username, passwordFile, caFile, fingerprint string
	snapshots                                   []string
	mirror, dryRun, adopt                       bool
}

func newCopyCmd(a *app) *cobra.Command {
	var f copyFlags
	cmd := &cobra.Command{
		Use:     "copy [SYSTEM...] --to URL",
		GroupID: groupCare,
		Short:   "Copy snapshots to another repository, or keep an exact mirror of this one",
		Long: `Copy snapshots to another repository, which "lifeboat init" has made and which has
keys of its own, or with --mirror make and complete an exact copy of this one in
another registry. Every unit is authenticated on the way. What has arrived is not
sent again: run it after each snapshot, and again when it was cut off.

A mirror has the same keys, hosts, locks, epochs and snapshots. Named under mirrors: in
the configuration it is read where the registry lacks something, gives it damaged,
or is down; after the loss of the registry it takes its place (--repo). Each run
reads its records back and asks for its packs, and sends again what is gone or
damaged there; "lifeboat verify --repo MIRROR" reads the packs, too.

A copy with another key is for another circle of trust: who holds its key reads
what was copied and nothing else. This host signs there and holds the systems'
epoch until somebody brings a system up from the copy; from then on that system is
not copied any more (exit code 13).

Such a copy keeps the order of its source, so that its newest snapshot is the newest
that was ever copied. What is older than what was copied before is not copied: what
was forgotten there stays forgotten, and "lifeboat forget" may keep less there than
here. Named by --snapshot it is refused (exit code 2). While something there cannot
be read that may be newer, only the newest of the line is copied (exit code 3).

Systems and --snapshot choose what is copied; without them it is everything.`,
		Example: `  lifeboat copy --mirror --to oci://second.example.com/dr
  lifeboat copy --to oci://partner.example.com/dr --to-key-file /etc/lifeboat/partner-key.txt shop
  lifeboat copy --to oci://archive.example.com/dr shop --snapshot 5f0c12ab --snapshot '#7' --dry-run`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeSystems,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runCopy(cmd.Context(), args, f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.to, "to", "", "`URL` of the repository to copy to")
	fl.BoolVar(&f.mirror, "mirror", false, "an exact copy of the repository, with the same keys; made where there is none")
	fl.StringVar(&f.keyFile, "to-key-file", "", "age identity `FILE` that opens it, where it has a key of its own")
	fl.StringVar(&f.passphraseFile, "to-passphrase-file", "", "`FILE` with its passphrase")
	fl.StringVar(&f.username, "to-username", "", "login `NAME` at its registry; without it Docker's credential store is asked")
	fl.StringVar(&f.passwordFile, "to-password-file", "", "`FILE` with the password, of mode 0600")
	fl.StringVar(&f.caFile, "to-ca-file", "", "certificate authorities `FILE` for its registry")
	fl.StringVar(&f.fingerprint, "to-fingerprint", "", "`SHA256` fingerprint of its registry's certificate")
	fl.StringArrayVar(&f.snapshots, "snapshot", nil, "only this `SNAPSHOT`: digits of its id, #NUMBER (with one SYSTEM) or latest; may be given several times")
	fl.BoolVar(&f.adopt, "adopt", false, "go on with a copy that another host has made, after that host was installed anew")
	fl.BoolVarP(&f.dryRun, "dry-run", "n", false, "show what would be copied, and copy nothing")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

// copyRow is one snapshot in the answer.
type copyRow struct {
	Snapshot dr.SnapshotID `json:"snapshot"`
	System   dr.System     `json:"system"`
	Number   dr.Number     `json:"number"`
	State    string        `json:"state"`
	// As is the snapshot in a repository with other keys.
	As     *dr.SnapshotID `json:"as,omitempty"`
	Reason string         `json:"reason,omitempty"`
}

type copyAnswer struct {
	To        string    `json:"to"`
	Mirror    bool      `json:"mirror"`
	DryRun    bool      `json:"dry_run"`
	Snapshots []copyRow `json:"snapshots"`
	// Records counts keys, hosts, locks, epochs and moves that were copied (mirror only).
	Records  int      `json:"records"`
	Packs    int64    `json:"packs"`
	Sent     int64    `json:"bytes_sent"`
	Read     int64    `json:"bytes_read"`
	Problems []string `json:"problems"`

	setBacks  []string // of Problems, those that say that the registry was set back
	lost      int      // and those that speak of damage
	there     []string // and those of the repository that is copied to
	thereBack bool     // it was set back
}

// leftOut adds what was left out of the copy.
func (a *app) leftOut(ans *copyAnswer, problems []repo.Problem) {
	for _, p := range problems {
		ans.Problems = append(ans.Problems, p.String())
		a.UI().Warn("left out: %s", p.String())
		switch {
		case p.SetBack():
			ans.setBacks = append(ans.setBacks, p.String())
		case !p.Foreign():
			ans.lost++
		}
	}
}

func (a *app) runCopy(ctx context.Context, names []string, f copyFlags) error {
	var systems []dr.System
	for _, n := range names {
		sys, err := dr.ParseSystem(n)
		if err != nil {
			return err
		}
		systems = append(systems, sys)
	}
	src, err := a.source()
	if err != nil {
		return err
	}
	at, rest, known := pick(src.mirrors, f.to)
	if known {
		src.mirrors = rest // what is copied to is not read from
	}
	w, err := a.openSource(ctx, src, false)
	if err != nil {
		return err
	}
	defer w.close()
	dst, err := a.copyTarget(ctx, w, f, at, known)
	if err != nil {
		return err
	}
	chosen, err := chooseSnapshots(ctx, w, systems, f.snapshots)
	if err != nil {
		return err
	}
	same, err := a.sameRepository(ctx, w, dst, f)
	if err != nil {
		return err
	}
	ans := copyAnswer{To: location(dst.src.url), Mirror: same, DryRun: f.dryRun, Snapshots: []copyRow{}, Problems: []string{}}
	if same {
		err = a.copyMirror(ctx, w, dst, chosen.only, f, &ans)
	} else {
		err = a.copyOther(ctx, w, dst, systems, chosen, f, &ans)
	}
	if err != nil && len(ans.Snapshots) == 0 {
		return a.explainCopy(dst.src, err)
	}
	if aerr := a.UI().Answer(ans, copyView(ans)...); aerr != nil {
		return errors.Join(err, aerr)
	}
	return errors.Join(a.explainCopy(dst.src, err), copyVerdict(ans))
}

// copyTarget opens the registry that is copied to.
func (a *app) copyTarget(ctx context.Context, w *world, f copyFlags, at address, known bool) (*world, error) {
	if location(f.to) == location(w.src.url) {
		return nil, fmt.Errorf("--to names the repository itself: %w", dr.ErrUsage)
	}
	if err := config.CheckRepo(f.to); err != nil {
		return nil, fmt.Errorf("--to: %w", err)
	}
	src := source{url: f.to, limits: w.src.limits, stateDir: w.src.stateDir, identities: w.src.identities, passphrase: w.src.passphrase}
	switch {
	case f.username != "" || f.passwordFile != "" || f.caFile != "" || f.fingerprint != "":
		if (f.username == "") != (f.passwordFile == "") {
			return nil, fmt.Errorf("--to-username and --to-password-file go together: %w", dr.ErrUsage)
		}
		src.registry = ocistore.Options{Username: f.username, CAFile: f.caFile, Fingerprint: f.fingerprint}
		if f.passwordFile != "" {
			var err error
			if src.registry.Password, err = readPassword("registry password (--to-password-file)", f.passwordFile); err != nil {
				return nil, err
			}
		}
	case known:
		src.registry = at.registry
	default:
		var err error
		if src.registry, err = registryOptions(w.cfg, f.to); err != nil {
			return nil, err
		}
	}
	dst := &world{cfg: w.cfg, src: src, meter: w.meter}
	own := a.lastSource
	err := a.openStore(ctx, dst)
	a.lastSource = own
	if err == nil {
		_, err = a.reach(ctx, dst)
	}
	return dst, err
}

// sameRepository decides whether an exact copy is made.
func (a *app) sameRepository(ctx context.Context, w, dst *world, f copyFlags) (bool, error) {
	exists, err := repo.Exists(ctx, dst.store)
	if err != nil {
		return false, a.explainRegistry(dst.src, "nothing was copied", err)
	}
	if f.mirror {
		return true, nil
	}
	if !exists {
		return false, ui.Explained{
			What: fmt.Sprintf("%s holds no repository", location(f.to)), State: "nothing was copied",
			Next: []string{
				"for an exact copy with the same keys: the same command with --mirror",
				"for a copy with keys of its own, make the repository first: lifeboat init --repo " + location(f.to) + " --config FILE  (a configuration of its own)",
			}, Err: dr.ErrNotFound,
		}
	}
	return w.repo.MirroredIn(ctx, dst.store)
}

// choice says which snapshots are copied; its zero value means all.
type choice struct {
	only func(*repo.Snapshot) bool
	// named are those that the command names by id or number.
	named map[dr.SnapshotID]bool
}

// chooseSnapshots finds what the command names.
func chooseSnapshots(ctx context.Context, w *world, systems []dr.System, refs []string) (choice, error) {
	if len(systems) == 0 && len(refs) == 0 {
		return choice{}, nil
	}
	ids, named := map[dr.SnapshotID]bool{}, map[dr.SnapshotID]bool{}
	for _, ref := range refs {
		var sys dr.System
		if len(systems) == 1 {
			sys = systems[0]
		}
		s, err := w.repo.Find(ctx, sys, ref)
		if err != nil {
			return choice{}, err
		}
		ids[s.ID] = true
		if ref != "" && ref != "latest" {
			named[s.ID] = true
		}
	}
	for _, sys := range systems {
		have, err := storedSystems(ctx, w)
		if err != nil {
			return choice{}, err
		}
		if !slices.Contains(have, sys) {
			return choice{}, fmt.Errorf("the repository has no snapshot of system %q; it has %v: %w", sys, have, dr.ErrNotFound)
		}
	}
	return choice{named: named, only: func(s *repo.Snapshot) bool {
		return (len(systems) == 0 || slices.Contains(systems, s.System)) && (len(ids) == 0 || ids[s.ID])
	}}, nil
}

func (a *app) copyMirror(ctx context.Context, w, dst *world, only func(*repo.Snapshot) bool, f copyFlags, ans *copyAnswer) error {
	task := a.UI().Progress().Bytes("copy", -1)
	res, err := w.repo.MirrorTo(ctx, dst.store, repo.MirrorOptions{
		Only: only, DryRun: f.dryRun,
		Progress: func(p repo.MirrorProgress) {
			task.SetTotal(p.BytesTotal)
			task.SetDone(p.Bytes)
		},
	})
	task.Done(err)
	if res == nil {
		return err
	}
	ans.Records, ans.Packs, ans.Sent, ans.Read = res.Records, int64(res.Packs), res.Bytes, res.BytesRead
	for _, r := range res.Rows {
		row := copyRow{Snapshot: r.ID, System: r.System, Number: r.Number, State: string(r.State)}
		if r.Err != nil {
			row.Reason = r.Err.Error()
		}
		ans.Snapshots = append(ans.Snapshots, row)
	}
	a.leftOut(ans, res.Problems)
	return err
}

// copyVerdict is the exit code of a copy that came to its end.
func copyVerdict(ans copyAnswer) error {
	damaged, held := 0, 0
	for _, r := range ans.Snapshots {
		switch repo.MirrorState(r.State) {
		case repo.MirrorDamaged:
			damaged++
		case repo.MirrorConflict:
			held++
		}
	}
	if held > 0 {
		return fmt.Errorf("%d snapshot(s) have another under their number there: the mirror was written to on its own: %w: %w", held, dr.ErrPartial, dr.ErrHeld)
	}
	if damaged > 0 {
		return fmt.Errorf("%d snapshot(s) are damaged, here or there, and were not copied; look with lifeboat verify: %w", damaged, dr.ErrPartial)
	}
	if len(ans.setBacks) > 0 {
		state := "everything that the registry shows is at " + ans.To + "; what it does not show was not copied, and nothing is removed there"
		if ans.DryRun {
			state = "nothing was copied (--dry-run); the real run would end with the same exit code"
		}
		return errSetBack("", ans.setBacks, state)
	}
	if ans.lost > 0 {
		return ui.Explained{
			What:  fmt.Sprintf("%d tag(s) could not be copied and were left out; the first: %s", ans.lost, ans.Problems[0]),
			State: "everything else is at " + ans.To,
			Next:  []string{"lifeboat check  (says what is damaged here)", "lifeboat check --repo " + ans.To + "  (and there)", "lifeboat repair --from URL"}, Err: dr.ErrPartial,
		}
	}
	if len(ans.there) > 0 {
		next := []string{"with the configuration of the copy: lifeboat check --repo " + ans.To + "  (says what is damaged there, and what mends it)"}
		if ans.thereBack {
			next = append(next, "LIFEBOAT_KEY_FILE=KEY lifeboat snapshots --accept-older --repo "+ans.To+"  (at this host, with the key of the copy: where what is missing there is lost, or was meant to go)")
		}
		return ui.Explained{
			What:  strings.Join(ans.there, "; "),
			State: "nothing older was put above what is there; what that held back is left out (--json lists it as older)",
			Next:  append(next, "lifeboat snapshots  (here: whether the newest is what it should be)"), Err: dr.ErrPartial,
		}
	}
	return nil
}

func (a *app) explainCopy(dst source, err error) error {
	const state = "what was copied stays and counts; every snapshot that is visible there is whole"
	var x ui.Explainer
	var older *copying.OlderError
	switch {
	case err == nil || errors.As(err, &x):
		return err
	case errors.As(err, &older):
		return ui.Explained{
			What: err.Error(), State: "nothing was copied",
			Next: []string{
				fmt.Sprintf("where its files are wanted: lifeboat restore %s@%s --to DIR, from the repository here", older.Snapshot.System, older.Snapshot.ID.Short()),
				"where the other circle is to have the snapshot itself: copy it to a repository that has nothing newer of the system (lifeboat init --repo URL makes one)",
				"what is newer is copied by the same command without --snapshot",
			}, Err: err,
		}
	case errors.Is(err, store.ErrForbidden):
		return ui.Explained{
			What: err.Error(), State: state,
			Next: []string{"give the login at " + hostOf(dst.url) + " the access role operator: it writes keys, hosts and the snapshots of all systems"}, Err: err,
		}
	case errors.Is(err, repo.ErrOtherRepository):
		return ui.Explained{
			What: err.Error(), State: "nothing was changed there",
			Next: []string{"name another repository with --to", "where it is a mirror of this one and has key records that are gone here: lifeboat repair --from " + location(dst.url) + ", then the same command again", "where the mirror has taken the place of the registry, copy the other way: --repo " + location(dst.url) + " --to " + location(a.lastSource.url)}, Err: err,
		}
	}
	return a.explainRegistry(dst, state, err)
}

func copyView(ans copyAnswer) []ui.View {
	t := ui.Table{
		Columns: []ui.Column{{Title: "snapshot"}, {Title: "system"}, {Title: "#", Right: true}, {Title: "state"}, {Title: "remark", Elastic: true}},
		Empty:   "there are no snapshots to copy",
	}
	there, older := 0, 0
	for _, s := range ans.Snapshots {
		switch s.State {
		case string(repo.MirrorThere):
			there++
			continue
		case stateOlder:
			older++
			continue
		}
		remark := s.Reason
		if s.As != nil {
			remark = strings.TrimSpace("as " + s.As.Short() + " " + remark)
		}
		t.Rows = append(t.Rows, []string{s.Snapshot.Short(), string(s.System), strconv.FormatUint(uint64(s.Number), 10), s.State, ui.Clean(remark)})
	}
	verb, sent := "were", "sent"
	if ans.DryRun {
		verb, sent = "are", "to send"
	}
	sum := fmt.Sprintf("%d snapshots %s there already; %d packs, %s %s", there, verb, ans.Packs, bytesText(ans.Sent), sent)
	if older > 0 {
		sum += fmt.Sprintf("; %d are older than what was copied before, and are left out: forgotten there, or passed over", older)
	}
	if ans.Packs == 0 && len(t.Rows) == 0 {
		sum = "nothing new: " + sum
	}
	if len(t.Rows) == 0 {
		return []ui.View{ui.Text(sum)}
	}
	return []ui.View{t, ui.Text(sum)}
}
