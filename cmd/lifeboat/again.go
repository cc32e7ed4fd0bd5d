package main

import (
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"lifeboat/internal/plan"
	"lifeboat/internal/redact"
	"lifeboat/internal/suggest"
)

// again is this run's command line for one system, with further overrides, to
// be pasted into a shell. Values of environment variables stay out of it: what
// is printed may be kept in a log (invariant 9).
func (a *app) again(name string, overrides ...string) string {
	if a.cmd == nil {
		return suggest.Command(append([]string{"lifeboat", name}, overrides...)...)
	}
	words := append(append(strings.Fields(a.cmd.CommandPath()), name), a.flagWords(overrides)...)
	for _, o := range overrides {
		words = append(words, "--override", o)
	}
	return suggest.Command(words...)
}

// sameAgain is this run's command line as it was, without values of environment
// variables.
func (a *app) sameAgain() string {
	if a.cmd == nil {
		return "lifeboat"
	}
	words := append(strings.Fields(a.cmd.CommandPath()), a.cmd.Flags().Args()...)
	return suggest.Command(append(words, a.flagWords(nil)...)...)
}

// againFor is sameAgain with another word for one of the arguments.
func (a *app) againFor(at int, word string) string {
	if a.cmd == nil {
		return "lifeboat"
	}
	args := slices.Clone(a.cmd.Flags().Args())
	if at < len(args) {
		args[at] = word
	}
	return suggest.Command(append(append(strings.Fields(a.cmd.CommandPath()), args...), a.flagWords(nil)...)...)
}

// flagWords are the flags that were given, without overrides that others replace.
func (a *app) flagWords(overrides []string) (words []string) {
	a.cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		for _, v := range flagValues(f) {
			if f.Name == "override" {
				if replaced(v, overrides) {
					continue
				}
				v = withoutValue(v)
			}
			words = append(words, flagWord(f, v)...)
		}
	})
	return words
}

// flagWord is a flag with one of its values.
func flagWord(f *pflag.Flag, v string) []string {
	switch {
	case f.Value.Type() == "bool" && v == "true":
		return []string{"--" + f.Name}
	case f.Value.Type() == "bool":
		return []string{"--" + f.Name + "=" + v}
	}
	return []string{"--" + f.Name, v}
}

func flagValues(f *pflag.Flag) []string {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.GetSlice()
	}
	return []string{f.Value.String()}
}

// replaced tells whether one of the overrides has the key of pair.
func replaced(pair string, overrides []string) bool {
	key, _, _ := strings.Cut(pair, "=")
	return slices.ContainsFunc(overrides, func(o string) bool { return strings.HasPrefix(o, key+"=") })
}

// withoutValue hides the value of an environment variable, unless it stands in
// a file.
func withoutValue(pair string) string {
	key, value, ok := strings.Cut(pair, "=")
	if !ok || !strings.HasPrefix(key, "environment.") || strings.HasPrefix(value, "@") {
		return pair
	}
	return key + "=" + redact.Mark
}

// solutions are what to do about conflicts: first what no override solves, then
// one command line with all overrides.
func (a *app) solutions(name string, conflicts []plan.Conflict) []string {
	var next, overrides []string
	for _, c := range conflicts {
		if c.Override == "" && !slices.Contains(next, c.Solve) {
			next = append(next, c.Solve)
		}
		if c.Override != "" && !slices.Contains(overrides, c.Override) {
			overrides = append(overrides, c.Override)
		}
	}
	return append(next, a.again(name, overrides...))
}
