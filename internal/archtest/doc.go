// Package archtest holds the code to the shape that the design gives it: who
// may import whom, and the few manners of the house that a program can check.
// It has nothing but tests; a failure tells the reason of its rule.
package archtest
