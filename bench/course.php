<?php
// Enters a course into WordPress: one post for each lecture, with its handout attached.
// Arguments: number of the course, lectures, directory of the course below wp-content.
$_SERVER['HTTP_HOST'] = 'localhost'; // the configuration asks for it
require '/usr/share/wordpress/wp-load.php';
[, $course, $lectures, $dir] = $argv;
for ($l = 0; $l < (int) $lectures; $l++) {
    $handout = sprintf('%s/l%02d/handout.pdf', $dir, $l);
    $post = wp_insert_post(['post_title' => "Course $course, lecture $l", 'post_status' => 'publish', 'post_author' => 1,
        'post_content' => str_repeat("What lecture $l of course $course is about. ", 60) . '<a href="' . content_url($handout) . '">Handout</a>'], true);
    if (is_wp_error($post)) {
        exit('post: ' . $post->get_error_message());
    }
    $attachment = wp_insert_attachment(['post_title' => "Handout $l", 'post_mime_type' => 'application/pdf', 'post_status' => 'inherit',
        'guid' => content_url($handout)], WP_CONTENT_DIR . '/' . $handout, $post, true);
    if (is_wp_error($attachment)) {
        exit('attachment: ' . $attachment->get_error_message());
    }
}
exit('ok');
