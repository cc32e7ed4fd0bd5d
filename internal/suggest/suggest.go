// Package suggest finds the word that somebody probably meant.
package suggest

import "slices"

// Closest returns the candidate nearest to word by edit distance (insert,
// delete, replace, swap of neighbours), or "" when none is near: at most one
// edit in three characters. Of equally near ones the first in sorted order.
func Closest(word string, candidates []string) string {
	best, bestDistance := "", len([]rune(word))/3+1
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		if d := distance([]rune(word), []rune(c)); d < bestDistance || (d == bestDistance && best == "" && d <= 2) {
			best, bestDistance = c, d
		}
	}
	return best
}

// Hint is Closest as the end of a sentence: ` (did you mean "web"?)`, or "".
func Hint(word string, candidates []string) string {
	if c := Closest(word, candidates); c != "" {
		return ` (did you mean "` + c + `"?)`
	}
	return ""
}

// distance is the optimal string alignment distance.
func distance(a, b []rune) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
