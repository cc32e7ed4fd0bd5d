<?php
/*
Plugin Name: Laboratory ledger
Description: Writes numbered entries into three trees in a fixed order, to prove that a capture is of one instant: "begin" into the uploads volume, then a post and a row into the database, then "done" into the writable layer.
*/
add_action('init', function () {
    if (!isset($_GET['ledger'])) {
        return;
    }
    global $wpdb;
    header('Content-Type: text/plain');
    if ($_GET['ledger'] === 'health') {
        exit($wpdb->get_var('SELECT 1') === '1' ? 'ok' : 'database');
    }
    if ($_GET['ledger'] === 'list') {
        $begin = @file('/var/lib/wordpress/wp-content/uploads/ledger.txt', FILE_IGNORE_NEW_LINES) ?: [];
        $done = @file('/var/lib/wordpress/ledger/done.txt', FILE_IGNORE_NEW_LINES) ?: [];
        $rows = $wpdb->get_col('SELECT seq FROM lab_ledger ORDER BY seq');
        exit(json_encode(['begin' => array_map('intval', $begin), 'rows' => array_map('intval', $rows), 'done' => array_map('intval', $done)]));
    }
    $seq = (int) ($_POST['seq'] ?? 0);
    if ($_SERVER['REQUEST_METHOD'] !== 'POST' || $seq <= 0) {
        status_header(400);
        exit('bad request');
    }
    $append = function ($path) use ($seq) {
        if (file_put_contents($path, $seq . "\n", FILE_APPEND | LOCK_EX) === false) {
            status_header(500);
            exit('cannot write ' . $path);
        }
    };
    $append('/var/lib/wordpress/wp-content/uploads/ledger.txt');
    $wpdb->query('START TRANSACTION');
    $wpdb->insert('lab_ledger', ['seq' => $seq, 'body' => 'entry ' . $seq]);
    if ($seq % 10 === 0) {
        wp_insert_post(['post_title' => 'Log entry ' . $seq, 'post_content' => str_repeat('All hands accounted for. ', 40), 'post_status' => 'publish', 'post_author' => 1]);
    }
    if ($wpdb->query('COMMIT') === false || $wpdb->last_error !== '') {
        status_header(500);
        exit('database: ' . $wpdb->last_error);
    }
    $append('/var/lib/wordpress/ledger/done.txt');
    exit('ok');
}, 1);
